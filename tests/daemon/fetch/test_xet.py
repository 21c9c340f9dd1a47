"""Fetching from Xet storage in a process of its own, and by HTTP whenever that does not work."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from craftcached.fetch import Engine, xet_command
from tests.support.fetching import MIB, QUICK, Rig, hub_file, sha256_of
from tests.support.hub import Gate, Generated, Stall, WithHeaders

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.hub import TestHub

CONTENT = Generated(2 * MIB + 7)

READ_ORDER = "import json, os, signal, sys; order = json.loads(sys.stdin.readline()); "

CHILDREN = {
    "fails": "sys.exit(3)",
    "stalls": "signal.pause()",
    "stalls midway": "open(order['path'], 'wb').write(b'x'); print(1, flush=True); signal.pause()",
    "brings other bytes": "open(order['path'], 'wb').write(bytes(order['size']))",
    "brings too little": "open(order['path'], 'wb').write(b'x')",
    "brings nothing": "pass",
}


def python(code: str) -> Sequence[str]:
    return (sys.executable, "-c", READ_ORDER + code)


def rig_with(base: Path, command: Sequence[str], *, stall_seconds: float = 20.0) -> Engine:
    settings = replace(QUICK, stall_seconds=stall_seconds)
    return Engine(base / "staging", settings, check_url=lambda _: None, xet=command)


@pytest.fixture(autouse=True)
def _hub_says_xet(hub: TestHub) -> None:
    hub.inject(WithHeaders({"X-Xet-Hash": "a" * 64}), origin="hub", times=None)


async def test_the_process_brings_the_file(hub: TestHub, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT.data)
    copy = (
        f"open(order['path'], 'wb').write(open({str(source)!r}, 'rb').read()); print(order['size'])"
    )
    async with rig_with(tmp_path, python(copy)) as engine:
        rig = Rig(engine, tmp_path / "staging")
        fetched = await rig.fetch(hub_file(hub, CONTENT))
        assert rig.left == ["k.whole"]
    assert sha256_of(fetched.path) == CONTENT.sha256 == fetched.digests.sha256
    assert fetched.path.stat().st_mode & 0o777 == 0o444
    assert fetched.bytes_reused == 0
    assert rig.reports[-1] == (CONTENT.size, CONTENT.size)
    assert hub.count("GET", origin="cdn") == 1, "the first request only"


@pytest.mark.parametrize("name", CHILDREN)
async def test_whatever_goes_wrong_the_file_comes_by_http(
    hub: TestHub, tmp_path: Path, name: str
) -> None:
    stall_seconds = 0.5 if "stalls" in name else 20.0
    child = python(CHILDREN[name])
    async with rig_with(tmp_path, child, stall_seconds=stall_seconds) as engine:
        rig = Rig(engine, tmp_path / "staging")
        fetched = await rig.fetch(hub_file(hub, CONTENT))
        assert rig.left == ["k.whole"]
    assert sha256_of(fetched.path) == CONTENT.sha256


async def test_a_hub_without_xet_storage_after_all(hub: TestHub, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "craftcached.fetch.xet_child")
    async with rig_with(tmp_path, command) as engine:
        fetched = await Rig(engine, tmp_path / "staging").fetch(hub_file(hub, CONTENT))
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert hub.count("HEAD", origin="hub") == 1, "the process asked the Hub"


async def test_cancelling_ends_the_process(hub: TestHub, tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    child = python(f"open({str(started)!r}, 'w').write(str(os.getpid())); signal.pause()")
    async with rig_with(tmp_path, child) as engine:
        rig = Rig(engine, tmp_path / "staging")
        fetching = asyncio.create_task(rig.fetch(hub_file(hub, CONTENT)))
        process = int(await asyncio.to_thread(started.read_text))
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert rig.left == []
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_the_process_does_not_outlive_the_daemon(threaded_hub: TestHub, tmp_path: Path) -> None:
    gate = Gate()
    threaded_hub.inject(Stall(gate), method="HEAD")
    file = hub_file(threaded_hub, CONTENT)
    order = f'{{"url": "{file.url}", "headers": {{}}, "path": "{tmp_path}/x", "size": 1}}\n'
    command = [sys.executable, "-m", "craftcached.fetch.xet_child"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(order)
        process.stdin.flush()
        gate.reached.wait_blocking()
        process.stdin.close()
        assert process.wait() == 1
    gate.open()


def test_xet_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    assert xet_command() is None
    monkeypatch.delenv("HF_HUB_DISABLE_XET")
    assert xet_command() is not None
