"""What it costs the daemon to be looked at: the processor time of each question.

``tests.bench.observability`` warms a small export through a real daemon and asks it what people and
tools ask: ``top``'s question, who has what, the status, a scrape. The daemon's processor time is
the kernel's own count of it. ``top`` asks once a second, so a question's milliseconds are tenths of
a per cent of a core.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import httpx

from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import hub_in_thread

RESULTS = Path(__file__).parent / "results" / "observability.json"
SOURCE = "bench/musicgen-tiny"
QUESTIONS = 300

PATHS = {
    "activity": "/v1/activity",
    "processes": "/v1/processes",
    "status": "/v1/status",
    "metrics": "/metrics",
}

TOP = {"activity": 1.0, "processes": 0.2}
"""How often ``craftcache top`` asks each, a second."""


def cpu_seconds(pid: int) -> float:
    """Processor time of a process since its start."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def measure(daemon: DaemonProcess) -> dict[str, float]:
    """Milliseconds of the daemon's processor time that each question takes."""
    transport = httpx.HTTPTransport(uds=str(daemon.socket_dir / "craftcache.sock"))
    costs = {}
    with httpx.Client(transport=transport, base_url="http://craftcached") as client:
        for name, path in PATHS.items():
            before = cpu_seconds(daemon.pid)
            for _ in range(QUESTIONS):
                assert client.get(path).is_success
            costs[name] = (cpu_seconds(daemon.pid) - before) / QUESTIONS * 1000
    return costs


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cc-") as base, hub_in_thread() as hub:
        hub.repo(SOURCE).commit(EXPORT_FILES)
        arguments = ("--insecure-host", "127.0.0.1")
        with (
            DaemonProcess(Path(base), *arguments, HF_ENDPOINT=hub.endpoint) as daemon,
            daemon.client() as client,
        ):
            export = client.load(SOURCE)
            costs = measure(daemon)
            del export
    top = sum(costs[name] * often for name, often in TOP.items()) / 10
    for name, cost in costs.items():
        print(f"{name:<10} {cost:.2f} ms of processor time")
    print(f"top        {top:.2f} % of a core")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"milliseconds": costs, "top_percent": top}, indent=2) + "\n")


if __name__ == "__main__":
    main()
