"""Nodes behind the example mirror: one copy from the origin, whatever happens to the mirror."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.api import Api
from tests.support.fleet import node_at
from tests.support.hub import Drip, Generated, ResetConnection, Valve
from tests.support.nginx_mirror import EXAMPLES, SLICE_BYTES, NginxMirror, needs_nginx
from tests.support.tools import needs

from .conftest import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub
    from tests.support.networks import Networks

    NewNode = Callable[..., DaemonProcess]

pytestmark = needs_nginx

MIB = 1024 * 1024
SIZE = 8 * MIB + 777
NAME = "weights.safetensors"
"""No checkpoint, so that nothing is inspected: these tests are about bytes."""

PATIENCE_S = 60.0

CLIENTS = 1000


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds; the machine may be busy."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, condition
        threading.Event().wait(0.01)  # the hub runs in this process, too


def put(
    hub: TestHub, repo_id: str, seed: int, *, size: int = SIZE, config: bytes = b"{}"
) -> Generated:
    """A repository with one large file."""
    content = Generated(size, seed)
    hub.repo(repo_id, gated=repo_id == "org/gated").commit({NAME: content, "config.json": config})
    return content


def warm(node: DaemonProcess, repo_id: str, *names: str) -> httpx.Response:
    with Api(node.socket_dir) as api:
        return api.warm(repo_id, files=names or (NAME,))


def warm_all(nodes: Sequence[DaemonProcess], repo_id: str) -> None:
    """Warm at once on all nodes, which all succeed with the right bytes."""
    with ThreadPoolExecutor(len(nodes)) as workers:
        for answer in workers.map(lambda node: warm(node, repo_id), nodes):
            assert answer.status_code == 200, answer.text


def right(node: DaemonProcess, content: Generated) -> bool:
    """Whether the node has the very bytes."""
    blobs = list(node.cache_dir.glob(f"models--*/blobs/{content.sha256}"))
    return bool(blobs) and all(blob.read_bytes() == content.data for blob in blobs)


class Copies:
    """Copies of a file that the origin sends from now on."""

    def __init__(self, hub: TestHub, content: Generated) -> None:
        self._hub = hub
        self._content = content
        self._before = self._sent()

    def _sent(self) -> int:
        return self._hub.bytes_sent(f"*{self._content.sha256}*", origin="cdn")

    @property
    def value(self) -> float:
        return (self._sent() - self._before) / self._content.size


def metric(node: DaemonProcess, name: str) -> float:
    """The sum of a metric over its labels."""
    with Api(node.socket_dir) as api:
        text = api.request("GET", "http://craftcached/metrics").text
    found = re.findall(rf"^craftcache_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for value in found)


def test_eight_cold_nodes_cost_one_copy(hub: TestHub, nodes: list[DaemonProcess]) -> None:
    content = put(hub, "org/cold", 1)
    copies = Copies(hub, content)
    warm_all(nodes, "org/cold")
    assert all(right(node, content) for node in nodes)
    assert copies.value <= 1.02
    assert sum(metric(node, "mirror_bytes_total") for node in nodes) == 8 * SIZE
    assert hub.tokens_at_cdn == []


def test_each_node_has_a_network_of_its_own(
    networks: Networks | OSError, nodes: list[DaemonProcess]
) -> None:
    """What a node reaches at all, it reaches by its own link."""
    if isinstance(networks, OSError):
        pytest.skip(f"all share one: {networks}")
    links = {os.stat(f"/proc/{node.pid}/ns/net").st_ino for node in nodes}
    assert len(links | {os.stat("/proc/thread-self/ns/net").st_ino}) == len(nodes) + 1


def test_a_thousand_clients_of_eight_daemons_cost_one_copy(
    hub: TestHub, nodes: list[DaemonProcess]
) -> None:
    """Their connections are there before the first of them asks."""
    content = put(hub, "org/crowd", 12)
    copies = Copies(hub, content)
    body = json.dumps({"sources": ["org/crowd"], "files": [NAME]})
    request = (
        "POST /v1/warm HTTP/1.1\r\nHost: craftcached\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    )

    async def ask_all() -> list[bytes]:
        paths = [node.socket_dir / "craftcache.sock" for node in nodes] * (CLIENTS // len(nodes))
        opened = [await asyncio.open_unix_connection(path) for path in paths]
        for _, writer in opened:
            writer.write(request.encode())
        answers = await asyncio.gather(*(reader.read() for reader, _ in opened))
        for _, writer in opened:
            writer.close()
            await writer.wait_closed()
        return answers

    answers = asyncio.run(ask_all())
    assert len(answers) == CLIENTS
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert all(right(node, content) for node in nodes)
    assert copies.value <= 1.02


def test_a_thousand_clients_of_the_mirror_cost_one_copy(hub: TestHub, mirror: NginxMirror) -> None:
    content = put(hub, "org/throng", 13)
    copies = Copies(hub, content)
    location = httpx.get(hub.resolve_url("org/throng", NAME)).headers["Location"]
    target = f"/.cdn/{location.removeprefix('http://')}"
    spans = [
        (start, min(start + SLICE_BYTES, SIZE))
        for start in itertools.islice(itertools.cycle(range(0, SIZE, SLICE_BYTES)), CLIENTS)
    ]

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *span: int) -> bool:
        writer.write(
            f"GET {target} HTTP/1.1\r\nHost: mirror\r\nRange: bytes={span[0]}-{span[1] - 1}\r\n"
            f"X-Craftcache-Content: {content.sha256}:1\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, sent = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return b" 206 " in head and sent == content.read(span[0], span[1] - span[0])

    async def ask_all() -> list[bool]:
        opened = [await asyncio.open_connection(hub.host, mirror.port) for _ in spans]
        return await asyncio.gather(
            *(ask(*each, *span) for each, span in zip(opened, spans, strict=True))
        )

    assert asyncio.run(ask_all()) == [True] * CLIENTS
    assert copies.value <= 1.02


def test_a_corrupt_slice_costs_one_copy_once_and_is_replaced(
    hub: TestHub, mirror: NginxMirror, nodes: list[DaemonProcess]
) -> None:
    content = put(hub, "org/rot", 2)
    warm_all(nodes[:1], "org/rot")
    copies = Copies(hub, content)
    mirror.corrupt(content.read(3 * SLICE_BYTES, 64))
    warm_all(nodes[1:5], "org/rot")
    assert all(right(node, content) for node in nodes[:5])
    assert all(
        metric(node, "mirror_wrong_ranges_total") == 1 and f"{3 * SLICE_BYTES}-" in node.log
        for node in nodes[1:5]
    )
    # Of the slice no more than each node could ask for, and most find that it is done already.
    wait_for(lambda: any("anew" in node.log for node in nodes[1:5]))
    assert 1.0 <= copies.value <= 1.0 + 4 * SLICE_BYTES / SIZE + 0.001
    copies = Copies(hub, content)
    warm_all(nodes[5:], "org/rot")
    assert copies.value <= 4 * SLICE_BYTES / SIZE
    assert all(metric(node, "mirror_wrong_ranges_total") == 0 for node in nodes[5:])


def test_a_gated_file_is_kept_once_and_given_to_nobody_without_the_right(
    hub: TestHub, mirror: NginxMirror, nodes: list[DaemonProcess], new_node: NewNode
) -> None:
    content = put(hub, "org/gated", 3, config=b'{"secret": 1}')
    copies = Copies(hub, content)
    warm_all(nodes[:3], "org/gated")
    assert copies.value <= 1.02
    assert warm(nodes[0], "org/gated", "config.json").status_code == 200
    assert warm(new_node(token=None), "org/gated").json()["code"] == "AccessDenied"
    with httpx.Client() as stranger:
        location = httpx.get(
            hub.resolve_url("org/gated", NAME), headers={"Authorization": f"Bearer {TOKEN}"}
        ).headers["Location"]
        path = location.removeprefix("http://").partition("?")[0]
        headers = {"X-Craftcache-Content": f"{content.sha256}:1", "Range": "bytes=0-99"}
        tries = [
            f"/.cdn/{path}",
            f"/.cdn/{path}?sig=00000000000000000000000000000000&key=test",
            f"/org/gated/resolve/main/{NAME}",
            "/org/gated/resolve/main/config.json",
            f"/.right?{location}",
            f"/.cdn/{mirror.name}/.cdn/{path}",
        ]
        for target in tries:
            answer = stranger.get(f"{mirror.url}{target}", headers=headers)
            assert answer.status_code in (401, 403, 404), target
            assert content.read(0, 100) not in answer.content
    kept = mirror.everything_kept()
    assert TOKEN.encode() not in kept
    assert b"secret" not in kept
    on_disk = b"".join(path.read_bytes() for path in mirror.cached())
    assert b"sig=" not in on_disk


def test_the_origin_may_be_gone(
    hub: TestHub, mirror: NginxMirror, nodes: list[DaemonProcess], new_node: NewNode
) -> None:
    names = (NAME, "config.json")
    content = Generated(SIZE, 4)
    commit = hub.repo("org/kept").commit({NAME: content, "config.json": b'{"kind": "t5"}'})
    hub.rename("kept", "org/kept")
    for name in ("org/kept", "kept"):
        assert warm(nodes[0], name, *names).status_code == 200
        for file in names:
            path = f"/{name}/resolve/{commit}/{file}"
            wait_for(partial(mirror.has_answer, path))
    away = hub.inject(ResetConnection(), method=None, times=None)
    try:
        node = new_node()
        for name in ("org/kept", "kept"):
            answer = warm(node, name, *names)
            assert answer.status_code == 200, answer.text
        assert right(node, content)
        assert f"described by mirror {mirror.name}, on its word" in node.log
        with Api(node.socket_dir) as api:
            shown = api.request("GET", "/models/org%2Fkept").text
        assert f"{mirror.url}/org/kept/resolve/" in shown
        # What is published is not replaced on a mirror's word, and without a mirror there is none.
        assert warm(node, "org/kept", *names).json()["code"] == "Unavailable"
        mirror.kill()
        problem = warm(new_node(), "org/kept", *names).json()
        assert (problem["code"], problem["retryable"]) == ("Unavailable", True)
    finally:
        away.cancel()
        mirror.kill()
        mirror.start()


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
    content = put(hub, "org/again", 11, size=2 * SIZE)
    copies = Copies(hub, content)
    valve = Valve(content.size // 2)
    drip = hub.inject(Drip(valve), path=f"*{content.sha256}*", origin="cdn", times=None)
    before = sum(metric(node, "mirror_bytes_total") for node in nodes)
    with ThreadPoolExecutor(1) as worker:
        warming = worker.submit(warm_all, nodes, "org/again")
        wait_for(lambda: copies.value >= 0.49)
        mirror.kill()
        drip.cancel()
        valve.open()
        wait_for(lambda: all("awaited for" in node.log for node in nodes))
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


def test_a_mirror_that_passes_tokens_on_has_the_hub_decide_for_each_asker(
    hub: TestHub,
) -> None:
    content = Generated(SIZE, 9)
    commit = hub.repo("org/closed", gated=True).commit({NAME: content})
    hub.grant("hf_granted", "org/closed")
    hub.grant("hf_other", "org/elsewhere")
    with NginxMirror(hub, passes_tokens=True) as mirror, httpx.Client() as client:

        def ask(token: str | None) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return client.get(
                f"{mirror.url}/org/closed/resolve/{commit}/{NAME}",
                headers={**headers, "Range": "bytes=0-99"},
            )

        assert ask("hf_granted").content == content.read(0, 100)
        assert [ask(token).status_code for token in (None, "hf_other")] == [401, 403]
        assert ask("hf_granted").status_code == 206
        assert b"hf_granted" not in mirror.everything_kept()
    assert hub.tokens_at_cdn == []


def test_the_example_is_valid_as_it_is_shipped(tmp_path: Path) -> None:
    """With the unit's run-time directory elsewhere, which only systemd makes."""
    for example in EXAMPLES.glob("nginx-mirror*.conf"):
        text = example.read_text().replace("/run/craftcache-mirror", str(tmp_path))
        (tmp_path / example.name).write_text(text)
    (tmp_path / "resolver.conf").write_text("resolver 127.0.0.1 valid=30s;\n")
    (tmp_path / "temp").mkdir()
    tested = subprocess.run(
        ["nginx", "-t", "-p", tmp_path, "-c", tmp_path / "nginx-mirror.conf"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stderr
