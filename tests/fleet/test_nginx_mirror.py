"""Nodes behind the example mirror: one copy from the origin, whatever happens to the mirror."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.support.api import Api
from tests.support.hub import Generated, ResetConnection
from tests.support.nginx_mirror import EXAMPLES, SLICE_BYTES, NginxMirror, needs_nginx

from .conftest import TOKEN
from .copies import NAME, SIZE, Copies, metric, put, right, wait_for, warm, warm_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import TestHub
    from tests.support.networks import Networks

    NewNode = Callable[..., DaemonProcess]

pytestmark = needs_nginx

CLIENTS = 1000


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
