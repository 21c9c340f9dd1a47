"""The example mirror is killed, stalls or has no room: nodes lose time, and the origin little."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.fleet import node_at
from tests.support.hub import Drip, Valve
from tests.support.nginx_mirror import NginxMirror, needs_nginx
from tests.support.tools import needs

from .copies import SIZE, Copies, metric, put, right, wait_for, warm, warm_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub

    NewNode = Callable[..., DaemonProcess]


pytestmark = needs_nginx


def test_a_mirror_that_is_killed_midway_costs_little_and_is_used_again(
    hub: TestHub, mirror: NginxMirror, new_node: NewNode
) -> None:
    content = put(hub, "org/killed", 5)
    copies = Copies(hub, content)
    valve = Valve(SIZE // 2)
    drip = hub.inject(Drip(valve), path=f"*{content.sha256}*", origin="cdn", times=None)
    node = new_node()
    with ThreadPoolExecutor(1) as worker:
        warming = worker.submit(warm, node, "org/killed")
        wait_for(lambda: copies.value >= 0.49)
        mirror.kill()
        drip.cancel()
        valve.open()
        assert warming.result().status_code == 200
    assert right(node, content)
    assert copies.value <= 1.3
    assert metric(node, "mirror_up") == 0
    mirror.start()
    # One request tries it, once its time is over, and then it is asked for everything again.
    for seed in range(100, 200):
        put(hub, f"org/after{seed}", seed)
        assert warm(node, f"org/after{seed}").status_code == 200
        if metric(node, "mirror_up"):
            break
    last = put(hub, "org/last", 6)
    before = metric(node, "mirror_bytes_total")
    assert warm(node, "org/last").status_code == 200
    assert metric(node, "mirror_bytes_total") - before == last.size


def test_eight_nodes_wait_for_a_mirror_that_is_started_again(
    hub: TestHub, mirror: NginxMirror, nodes: list[DaemonProcess]
) -> None:
    """As its unit does at once. An eighth of the copy may have been under way."""
    put(hub, "org/before", 12)
    warm_all(nodes, "org/before")  # each node has been served by it, and so waits for it
    content = put(hub, "org/again", 11, size=2 * SIZE)
    copies = Copies(hub, content)
    valve = Valve(content.size // 2)
    drip = hub.inject(Drip(valve), path=f"*{content.sha256}*", origin="cdn", times=None)
    before = sum(metric(node, "mirror_bytes_total") for node in nodes)
    with ThreadPoolExecutor(1) as worker:
        warming = worker.submit(warm_all, nodes, "org/again")
        wait_for(lambda: copies.value >= 0.49)
        mirror.kill()
        try:
            drip.cancel()
            valve.open()
            wait_for(lambda: all("awaited for" in node.log for node in nodes))
        finally:
            mirror.start()
        warming.result()
    assert all(right(node, content) for node in nodes)
    assert copies.value <= 1.3
    after = sum(metric(node, "mirror_bytes_total") for node in nodes)
    assert after - before >= 8 * content.size
    assert all(metric(node, "mirror_up") == 1 for node in nodes)


def test_one_that_stalls_costs_time_only(
    hub: TestHub, mirror: NginxMirror, new_node: NewNode
) -> None:
    content = put(hub, "org/stalled", 7)
    copies = Copies(hub, content)
    node = new_node(patience=0.5)
    mirror.pause()
    try:
        assert warm(node, "org/stalled").status_code == 200
    finally:
        mirror.kill()
        mirror.start()
    assert right(node, content)
    assert copies.value <= 1.3


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a quarter of the file."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0755", "tmpfs", tmp_path],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@needs("mount")
def test_a_mirror_whose_disk_is_full_fails_no_warm(
    hub: TestHub, base: Path, tiny_disk: Path
) -> None:
    content = put(hub, "org/full", 8)
    copies = Copies(hub, content)
    with NginxMirror(hub, files=tiny_disk) as mirror, node_at(base, hub, mirror.url) as node:
        assert warm(node, "org/full").status_code == 200
        assert right(node, content)
    assert copies.value <= 2.0
