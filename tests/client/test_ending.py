"""Ending ends: one signal, or the end of the main thread, ends whatever waits; nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import EXPORT, DaemonProcess
from tests.support.hub import Gate, Stall

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.hub import Repo, TestHub

SECONDS = 30.0
"""How long a program may take that is to end; it fails then, and never passes by waiting."""

ENDED = {signal.SIGINT: 1, signal.SIGTERM: -signal.SIGTERM}
"""Exit statuses of a command that a signal ended: click says that an interrupt failed it."""

COMMANDS = {
    "warm": ("-m", "craftcache.cli", "warm", "org/model"),
    "load": ("-m", "craftcache.cli", "load", "org/model"),
}

WAITS_FOR_SEVERAL = """
import asyncio, craftcache
async def main():
    async with craftcache.AsyncClient() as client:
        calls = [client.{method}("org/model") for _ in range(2)]
        await asyncio.wait([asyncio.create_task(call) for call in calls])
asyncio.run(main())
"""

SETTLED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@contextlib.contextmanager
def program(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A child with its own session and pipes, killed at the end of the block if it still runs."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def places(daemon: DaemonProcess) -> dict[str, str]:
    return {
        "CRAFTCACHE_SOCKET_DIR": str(daemon.socket_dir),
        "CRAFTCACHE_CACHE_DIR": str(daemon.cache_dir),
    }


@pytest.fixture
def stalled(threaded_hub: TestHub) -> Iterator[Gate]:
    """The hub begins to send the files of the model, and then sends no more."""
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="/lfs/*", method="GET", times=None)
    yield gate
    gate.open()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("command", COMMANDS)
def test_one_signal_ends_a_command(
    daemon: DaemonProcess, stalled: Gate, command: str, number: signal.Signals
) -> None:
    with program(*COMMANDS[command], **places(daemon)) as child:
        stalled.reached.wait_blocking()
        child.send_signal(number)
        _, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == ENDED[number]
    assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("export_repo")
def test_a_command_that_fetches_by_itself_leaves_nothing_half_done(
    base: Path, threaded_hub: TestHub, stalled: Gate, command: str, number: signal.Signals
) -> None:
    cache = base / "cache"
    environment = {
        "HF_ENDPOINT": threaded_hub.endpoint,
        "CRAFTCACHE_SOCKET_DIR": str(base / "run"),
        "CRAFTCACHE_CACHE_DIR": str(cache),
    }
    with program(*COMMANDS[command], **environment) as child:
        stalled.reached.wait_blocking()
        child.send_signal(number)
        child.communicate(timeout=SECONDS)
    assert child.returncode == ENDED[number]
    assert not [path for path in cache.rglob("*.tmp") if path.is_file()]


def test_what_follow_runs_ends_with_it(base: Path) -> None:
    """Nobody else would end it, nor learn how it ended."""
    config = base / "config.toml"
    config.write_text(f'[[watches]]\ndirectory = "{EXPORT}"\nname = "run"\nsettle = 0.05\n')
    waits = ("sh", "-c", "echo begun; exec sleep 1000")
    with (
        DaemonProcess(base, "--config", str(config)) as daemon,
        program(
            *("-m", "craftcache.cli", "follow", "run", "--", *waits), **places(daemon)
        ) as child,
    ):
        assert child.stdout is not None
        assert "begun" in iter(lambda: child.stdout.readline().strip(), "")  # type: ignore[union-attr]
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=SECONDS)  # until nobody holds its streams any more
    assert child.returncode == -signal.SIGTERM


@pytest.mark.parametrize("method", ["warm", "load"])
def test_one_interrupt_ends_a_program_that_waits_for_several(
    daemon: DaemonProcess, stalled: Gate, method: str
) -> None:
    code = SETTLED + WAITS_FOR_SEVERAL.format(method=method)
    with program("-c", code, **places(daemon)) as child:
        stalled.reached.wait_blocking()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors


IN_A_DAEMON_THREAD = """
import asyncio, craftcache, threading
begun = threading.Event()
async def main():
    {body}
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
begun.wait()
print("left", flush=True)
"""

IN_A_CLOSED_LOOP = """
import asyncio, craftcache, threading, warnings
begun = threading.Event()
async def main():
    {body}
async def wait():
    await asyncio.to_thread(begun.wait)
loop = asyncio.new_event_loop()
task = loop.create_task(main())
loop.run_until_complete(wait())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("left", flush=True)
"""

FOLLOW = 'async for _ in craftcache.AsyncClient().follow("run"): begun.set()'
WARM = 'await craftcache.AsyncClient().warm("org/model", on_progress=lambda _: begun.set())'


@pytest.mark.parametrize("where", [IN_A_DAEMON_THREAD, IN_A_CLOSED_LOOP], ids=["thread", "closed"])
def test_following_keeps_no_process_alive(base: Path, where: str) -> None:
    config = base / "config.toml"
    config.write_text(f'[[watches]]\ndirectory = "{EXPORT}"\nname = "run"\nsettle = 0.05\n')
    with (
        DaemonProcess(base, "--config", str(config)) as daemon,
        program("-c", where.format(body=FOLLOW), **places(daemon)) as child,
    ):
        out, _ = child.communicate(timeout=SECONDS)
    assert out == "left\n"


@pytest.mark.parametrize("has_daemon", [True, False], ids=["daemon", "alone"])
def test_a_warm_under_way_keeps_no_process_alive_and_leaves_nothing(
    daemon: DaemonProcess, stalled: Gate, threaded_hub: TestHub, base: Path, has_daemon: bool
) -> None:
    own = {"CRAFTCACHE_SOCKET_DIR": str(base / "none"), "CRAFTCACHE_CACHE_DIR": str(base / "own")}
    environment = places(daemon) if has_daemon else own | {"HF_ENDPOINT": threaded_hub.endpoint}
    code = IN_A_DAEMON_THREAD.format(body=WARM)
    with program("-c", code, **environment) as child:
        out, _ = child.communicate(timeout=SECONDS)
    assert out == "left\n"
    if not has_daemon:
        assert [path for path in (base / "own").rglob("staging/*") if path.is_file()] == []


def test_closing_a_client_cancels_what_runs(
    daemon: DaemonProcess, stalled: Gate, export_repo: Repo
) -> None:
    async def main() -> None:
        client = daemon.async_client()
        load = asyncio.create_task(client.load(export_repo.repo_id))
        await asyncio.to_thread(stalled.reached.wait_blocking)
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await load

    asyncio.run(main())
