"""Cold nodes with and without a mirror, over an uplink of a given width.

``python -m tests.bench.fleet`` runs real daemons and, where there is one, the example mirror in a
real nginx. All share one uplink: a budget of bytes that is filled up steadily, whoever takes them.
What counts are the copies that go over it, and the times as ratios to one node without a mirror.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.api import Api
from tests.support.fleet import node_at
from tests.support.hub import Drip, Generated, OnDisk, Valve, hub_in_thread
from tests.support.nginx_mirror import NginxMirror

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

MIB = 1024**2
NAME = "weights.safetensors"
TICK_SECONDS = 0.02
BURST_SECONDS = 0.2
WARM_SECONDS = 3600.0
SLICE_BYTES = 8 * MIB


@contextlib.contextmanager
def uplink(hub: TestHub, rate: int) -> Iterator[None]:
    """Let ``hub`` send so many bytes a second in all."""
    valve, over = Valve(), threading.Event()
    hub.inject(Drip(valve), origin="cdn", times=None)

    def fill() -> None:
        before = time.monotonic()
        while not over.wait(TICK_SECONDS):
            now = time.monotonic()
            # What an idle line could have sent is gone.
            valve.allow(int(rate * (now - before)), most=int(rate * BURST_SECONDS))
            before = now

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        yield
    finally:
        over.set()
        filling.join()
        valve.open()


def warm(nodes: list[DaemonProcess], repo_id: str) -> float:
    """Seconds until all nodes that are warmed at once are warm."""

    def one(node: DaemonProcess) -> None:
        with Api(node.socket_dir, timeout=WARM_SECONDS) as api:
            answer = api.warm(repo_id, files=(NAME,))
            assert answer.status_code == 200, answer.text

    began = time.monotonic()
    with ThreadPoolExecutor(len(nodes)) as workers:
        list(workers.map(one, nodes))
    return time.monotonic() - began


def measure(
    base: Path,
    content: OnDisk,
    nodes: int,
    rate: int,
    *,
    mirrors: int,
    killed: bool = False,
    away: float | None = None,
    grace: float = 4.0,
    cap: int = 0,
) -> dict[str, float]:
    """The time and the copies of one start of cold nodes.

    Args:
        base: For all directories.
        content: What is fetched.
        nodes: How many there are.
        rate: Of the uplink, in bytes a second.
        mirrors: How many mirrors there are.
        killed: Whether one is killed at the half of the first copy.
        away: Seconds after which it is started again; None leaves it dead.
        grace: The nodes' setting for the mirror.
        cap: The nodes' max_uplink_bytes_per_second.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=base)))
        hub = stack.enter_context(hub_in_thread())
        hub.repo("org/model").commit({NAME: content})
        running = [
            stack.enter_context(NginxMirror(hub, slice_bytes=SLICE_BYTES)) for _ in range(mirrors)
        ]
        made = [
            node_at(
                directory / str(number),
                hub,
                *(each.url for each in running),
                slice_bytes=SLICE_BYTES,
                grace=grace,
                settings=f"max_uplink_bytes_per_second = {cap}",
            )
            for number in range(nodes)
        ]
        for node in made:
            stack.enter_context(node)
        stack.enter_context(uplink(hub, rate))
        if killed:
            half = threading.Thread(
                target=_kill_midway, args=(hub, running[-1], content.size, away)
            )
            half.start()
            stack.callback(half.join)
        seconds = warm(made, "org/model")
        return {"seconds": seconds, "copies": hub.bytes_sent(origin="cdn") / content.size}


def _kill_midway(hub: TestHub, mirror: NginxMirror, size: int, away: float | None) -> None:
    while hub.bytes_sent(origin="cdn") < size / 2:
        time.sleep(TICK_SECONDS)
    mirror.kill()
    if away is not None:
        time.sleep(away)
        mirror.start()


def cases(nodes: int, rate: int) -> list[tuple[str, int, dict[str, Any]]]:
    """What is measured: its name, how many nodes, and the rest of what measure takes."""
    many = f"{nodes} nodes"
    killed: dict[str, Any] = {"mirrors": 1, "killed": True}
    share = rate // nodes // 4
    return [
        ("1 node, no mirror", 1, {"mirrors": 0}),
        ("1 node, mirror", 1, {"mirrors": 1}),
        ("1 node, mirror killed midway, back after 1.5 s", 1, killed | {"away": 1.5}),
        ("1 node, mirror killed midway and gone", 1, killed),
        (f"{many}, no mirror", nodes, {"mirrors": 0}),
        (f"{many}, mirror", nodes, {"mirrors": 1}),
        (f"{many}, mirror killed midway, back after 1.5 s", nodes, killed | {"away": 1.5}),
        (f"{many}, ... and without grace", nodes, killed | {"away": 1.5, "grace": 0.0}),
        (f"{many}, mirror killed midway, back after 15 s", nodes, killed | {"away": 15.0}),
        (f"{many}, ... and with a cap", nodes, killed | {"away": 15.0, "cap": share}),
        (f"{many}, mirror killed midway and gone", nodes, killed),
        (f"{many}, one of two mirrors killed midway and gone", nodes, killed | {"mirrors": 2}),
    ]


def main() -> None:
    """Measure, and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--uplink", type=int, default=40, help="megabytes a second")
    parser.add_argument("--only", default="", help="what the names of all runs have in them")
    given = parser.parse_args()
    rate = given.uplink * MIB
    with tempfile.TemporaryDirectory(prefix="ccb-") as base:
        path = Path(base, "weights")
        with path.open("wb") as file:
            generated = Generated(given.megabytes * MIB)
            for offset in range(0, generated.size, MIB):
                file.write(generated.read(offset, MIB))
        content = OnDisk(path)
        runs: dict[str, dict[str, float]] = {}
        for name, count, options in cases(given.nodes, rate):
            if given.only in name:
                run = runs[name] = measure(Path(base), content, count, rate, **options)
                alone = next(iter(runs.values()))["seconds"]
                print(
                    f"{name:48} {run['copies']:6.3f} copies {run['seconds'] / alone:6.2f}x",
                    flush=True,
                )
    print(json.dumps({"megabytes": given.megabytes, "uplink": given.uplink, "runs": runs}))


if __name__ == "__main__":
    main()
