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
from typing import TYPE_CHECKING

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


@contextlib.contextmanager
def uplink(hub: TestHub, rate: int) -> Iterator[None]:
    """Let ``hub`` send so many bytes a second in all."""
    valve, over = Valve(), threading.Event()
    hub.inject(Drip(valve), origin="cdn", times=None)

    def fill() -> None:
        while not over.wait(TICK_SECONDS):
            valve.allow(int(rate * TICK_SECONDS))

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
        with Api(node.socket_dir) as api:
            answer = api.warm(repo_id, files=(NAME,))
            assert answer.status_code == 200, answer.text

    began = time.monotonic()
    with ThreadPoolExecutor(len(nodes)) as workers:
        list(workers.map(one, nodes))
    return time.monotonic() - began


def measure(
    base: Path, content: OnDisk, nodes: int, rate: int, *, mirrored: bool, killed: bool = False
) -> dict[str, float]:
    """The time and the copies of one start of cold nodes."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=base)))
        hub = stack.enter_context(hub_in_thread())
        hub.repo("org/model").commit({NAME: content})
        mirror = stack.enter_context(NginxMirror(hub, slice_bytes=8 * MIB)) if mirrored else None
        made = [
            node_at(
                directory / str(number), hub, mirror.url if mirror else None, slice_bytes=8 * MIB
            )
            for number in range(nodes)
        ]
        for node in made:
            stack.enter_context(node)
        stack.enter_context(uplink(hub, rate))
        if killed and mirror is not None:
            half = threading.Thread(target=_kill_midway, args=(hub, mirror, content.size))
            half.start()
            stack.callback(half.join)
        seconds = warm(made, "org/model")
        return {"seconds": seconds, "copies": hub.bytes_sent(origin="cdn") / content.size}


def _kill_midway(hub: TestHub, mirror: NginxMirror, size: int) -> None:
    while hub.bytes_sent(origin="cdn") < size / 2:
        time.sleep(TICK_SECONDS)
    mirror.kill()


def main() -> None:
    """Measure, and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--uplink", type=int, default=40, help="megabytes a second")
    given = parser.parse_args()
    rate = given.uplink * MIB
    with tempfile.TemporaryDirectory(prefix="ccb-") as base:
        path = Path(base, "weights")
        with path.open("wb") as file:
            generated = Generated(given.megabytes * MIB)
            for offset in range(0, generated.size, MIB):
                file.write(generated.read(offset, MIB))
        content = OnDisk(path)
        runs = {
            "1 node, no mirror": measure(Path(base), content, 1, rate, mirrored=False),
            "1 node, mirror": measure(Path(base), content, 1, rate, mirrored=True),
            "1 node, mirror killed midway": measure(
                Path(base), content, 1, rate, mirrored=True, killed=True
            ),
            f"{given.nodes} nodes, no mirror": measure(
                Path(base), content, given.nodes, rate, mirrored=False
            ),
            f"{given.nodes} nodes, mirror": measure(
                Path(base), content, given.nodes, rate, mirrored=True
            ),
            f"{given.nodes} nodes, mirror killed midway": measure(
                Path(base), content, given.nodes, rate, mirrored=True, killed=True
            ),
        }
    alone = runs["1 node, no mirror"]["seconds"]
    for name, run in runs.items():
        print(f"{name:32} {run['copies']:6.3f} copies {run['seconds'] / alone:6.2f}x")
    print(json.dumps({"megabytes": given.megabytes, "uplink": given.uplink, "runs": runs}))


if __name__ == "__main__":
    main()
