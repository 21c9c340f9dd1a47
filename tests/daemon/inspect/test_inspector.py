"""The inspector and its processes: killed, starved, withdrawn, unheard, left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import torch
from omegaconf import OmegaConf

from craftcache.checkpoint.index import Index, parse
from craftcache.checkpoint.tensors import build
from craftcache.errors import CraftcacheError, NotACheckpoint, Unavailable
from craftcached.inspect import Inspector
from tests.support.checkpoints import assert_same, loaded, saved
from tests.support.pickles import Op, archive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOOD = saved({"weight": torch.arange(100.0)})


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inspector() -> AsyncIterator[Inspector]:
    async with Inspector() as inspector:
        yield inspector


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.bin"
    path.write_bytes(GOOD)
    return path


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A checkpoint that takes long to read: it keeps one value under one number, very often."""
    path = tmp_path / "endless.bin"
    path.write_bytes(archive(Op.whole(b"N", b"q\x00" * 7_900_000)))
    return path


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Likewise, for as long as it takes to find its process and to stop it."""
    path = tmp_path / "slow.bin"
    path.write_bytes(archive(Op.whole(b"N", b"q\x00" * 1_500_000)))
    return path


async def inspect(inspector: Inspector, path: Path) -> Index:
    data = await inspector.inspect(path, source="org/name")
    return parse(data, file_size=path.stat().st_size)


def forked_by(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that have not ended."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # or the thread
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def servers(pid: int) -> list[int]:
    """The process of ``pid`` that others are forked from to inspect."""
    return [each for each in forked_by(pid) if b"craftcached.inspect.forkserver" in command(each)]


def children(pid: int) -> list[int]:
    """The inspecting processes of ``pid`` that have not ended."""
    return [child for server in servers(pid) for child in forked_by(server)]


def command(pid: int) -> bytes:
    """What a process was started with; nothing once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def stopped_child(pid: int) -> int:
    """The one inspecting process of ``pid``, once it reads its file; it gets no further."""
    while not (found := [child for child in children(pid) if is_reading(child)]):
        await asyncio.sleep(0)
    (child,) = found
    os.kill(child, signal.SIGSTOP)
    return child


def is_reading(pid: int) -> bool:
    """Whether a process is confined already, and so at its file."""
    try:
        return limits_of(pid)["Max open files"].split()[0] == "16"
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return False


def limits_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:] for line in lines}


async def wait_for_end(pidfd: int) -> None:
    """Until the process has ended, whoever its parent is."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(30):
            await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def test_an_inspected_file_loads_as_torch_loads_it(inspector: Inspector, good: Path) -> None:
    index = await inspect(inspector, good)
    with good.open("rb") as file:
        assert_same(build(index, file.fileno(), device=torch.device("cpu")), loaded(GOOD))


INSPECTING = """
import asyncio, signal, sys
from pathlib import Path
from craftcached.inspect import Inspector
async def main():
    async with Inspector() as inspector:
        print(len(await inspector.inspect(Path(sys.argv[1]), source='s')))
"""


async def test_the_daemon_never_imports_torch(good: Path) -> None:
    script = INSPECTING + "asyncio.run(main()); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script, good], capture_output=True, check=True)
    assert int(done.stdout) > 0


async def test_a_file_has_a_process_that_ends_with_it(inspector: Inspector, slow: Path) -> None:
    assert children(os.getpid()) == []
    task = asyncio.create_task(inspect(inspector, slow))
    child = await stopped_child(os.getpid())
    assert b"-I\0-S\0" in command(child)  # so it cannot even find torch
    os.kill(child, signal.SIGCONT)
    await task
    assert children(os.getpid()) == []


async def test_omegaconf_configs_are_safe_and_have_no_index(
    inspector: Inspector, tmp_path: Path
) -> None:
    path = tmp_path / "mbd.th"
    path.write_bytes(saved({"xp.cfg": OmegaConf.create({"a": [1]}), "sample_rate": 32000}))
    index = await inspect(inspector, path)
    assert index.reason == "it holds a omegaconf.dictconfig.DictConfig"
    assert index.value("sample_rate") == 32000


async def test_many_files_are_looked_at_one_after_another(slow: Path) -> None:
    async with Inspector(concurrency=1) as own:
        tasks = [asyncio.create_task(inspect(own, slow)) for _ in range(4)]
        child = await stopped_child(os.getpid())
        assert children(os.getpid()) == [child]
        os.kill(child, signal.SIGCONT)
        indexes = await asyncio.gather(*tasks)
    assert all(index == indexes[0] for index in indexes)


async def test_a_file_that_takes_too_much_computing_is_refused(good: Path, endless: Path) -> None:
    async with Inspector(cpu_seconds=1) as hasty:
        with pytest.raises(NotACheckpoint, match=r"org/name: .* more computing"):
            await inspect(hasty, endless)
        await inspect(hasty, good)


async def test_a_machine_that_takes_too_long_says_nothing_about_the_file(endless: Path) -> None:
    async with Inspector(deadline=0.2) as hasty:
        with pytest.raises(Unavailable, match=r"org/name: .* within 0.2 s") as late:
            await inspect(hasty, endless)
        assert late.value.retryable


async def test_withdrawing_ends_the_child_at_once(inspector: Inspector, slow: Path) -> None:
    withdrawn = asyncio.create_task(inspect(inspector, slow))
    ended = os.pidfd_open(await stopped_child(os.getpid()))
    withdrawn.cancel()
    await wait_for_end(ended)
    with pytest.raises(asyncio.CancelledError):
        await withdrawn
    await inspect(inspector, slow)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSYS, signal.SIGTERM])
async def test_a_child_that_others_kill_is_replaced(
    inspector: Inspector, slow: Path, number: signal.Signals
) -> None:
    task = asyncio.create_task(inspect(inspector, slow))
    child = await stopped_child(os.getpid())
    os.kill(child, number)
    os.kill(child, signal.SIGCONT)
    await task


async def kill_each(
    pid: int, task: asyncio.Task[object], number: signal.Signals = signal.SIGKILL
) -> None:
    """Kill each inspecting process of ``pid`` until the task has ended.

    What looks whether another file fares better is quicker than we are: from then on, its server.
    """
    killed = set()
    while not task.done():
        found = set(children(pid))
        for child in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        killed |= found
        for server in servers(pid) if len(killed) >= 2 and not found else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
        await asyncio.sleep(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
async def test_children_that_are_always_killed_are_the_daemons_own_failure(
    inspector: Inspector, slow: Path, number: signal.Signals
) -> None:
    task = asyncio.create_task(inspect(inspector, slow))
    await kill_each(os.getpid(), task, number)
    with pytest.raises(CraftcacheError, match=r"org/name: the process that inspects it") as caught:
        await task
    assert type(caught.value) is CraftcacheError  # which on the wire is nobody else's fault
    assert caught.value.retryable
    await inspect(inspector, slow)


async def test_a_file_that_crashes_each_process_where_another_file_does_not_is_refused(
    inspector: Inspector, slow: Path
) -> None:
    task = asyncio.create_task(inspect(inspector, slow))
    for _ in range(2):
        child = await stopped_child(os.getpid())
        ended = os.pidfd_open(child)
        os.kill(child, signal.SIGSEGV)
        os.kill(child, signal.SIGCONT)
        await wait_for_end(ended)
        while child in children(os.getpid()):
            await asyncio.sleep(0)
    with pytest.raises(NotACheckpoint, match=r"crashes: the process was killed by SIGSEGV"):
        await task
    await inspect(inspector, slow)


UNHEARD = INSPECTING + "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"


async def test_a_verdict_counts_where_nobody_learns_how_children_end(good: Path) -> None:
    script = UNHEARD + "asyncio.run(main())"
    done = subprocess.run([sys.executable, "-c", script, good], capture_output=True, check=True)
    assert int(done.stdout) > 0


async def test_a_killed_child_is_the_daemons_own_failure_there_too(endless: Path) -> None:
    script = UNHEARD + (
        "from craftcache.errors import CraftcacheError\n"
        "try: asyncio.run(main())\n"
        "except CraftcacheError as error: print(type(error).__name__, error.retryable)"
    )
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, endless),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    task = asyncio.create_task(daemon.communicate())
    await kill_each(daemon.pid, task)
    assert (await task)[0] == b"CraftcacheError True\n"


@pytest.mark.parametrize("patience", [0.0, 0.05, 0.3])
async def test_giving_up_while_a_child_starts_leaves_nothing(
    endless: Path, patience: float
) -> None:
    async with Inspector() as own:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(patience):  # wherever the start has got to by then
                await inspect(own, endless)
        assert children(os.getpid()) == []


async def test_leaving_ends_the_jobs_at_work_for_good(slow: Path) -> None:
    async with Inspector() as own:
        task = asyncio.create_task(inspect(own, slow))
        await stopped_child(os.getpid())
    with pytest.raises(Unavailable, match="shut down"):
        await task
    assert children(os.getpid()) == []


async def test_nothing_outlives_a_killed_daemon(endless: Path) -> None:
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", INSPECTING + "asyncio.run(main())", endless),
        stdout=subprocess.DEVNULL,
    )
    while not (found := children(daemon.pid)):
        await asyncio.sleep(0)
    ended = os.pidfd_open(found[0])
    daemon.kill()
    await daemon.wait()
    await wait_for_end(ended)


async def test_the_process_that_forks_is_replaced_with_all_that_it_forked(slow: Path) -> None:
    others = set(servers(os.getpid()))
    async with Inspector() as own:
        task = asyncio.create_task(inspect(own, slow))
        ended = os.pidfd_open(await stopped_child(os.getpid()))
        (server,) = set(servers(os.getpid())) - others
        os.kill(server, signal.SIGKILL)
        await wait_for_end(ended)
        await task
        (another,) = set(servers(os.getpid())) - others
        assert another != server
    assert set(servers(os.getpid())) == others


async def test_an_inspecting_process_has_the_two_files_and_no_way_to_its_server(
    slow: Path,
) -> None:
    async with Inspector() as own:
        task = asyncio.create_task(inspect(own, slow))
        child = await stopped_child(os.getpid())
        opened = [os.readlink(path) for path in Path(f"/proc/{child}/fd").iterdir()]
        os.kill(child, signal.SIGCONT)
        await task
    assert not [name for name in opened if name.startswith("socket:")]
    assert str(slow) in opened
    assert any("memfd:index" in name for name in opened)


async def test_what_is_no_regular_file_is_refused(inspector: Inspector, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(NotACheckpoint, match="no regular file"):
            await inspector.inspect(path, source="s")
    with pytest.raises(FileNotFoundError):
        await inspector.inspect(tmp_path / "none", source="s")


async def test_a_link_is_followed_and_its_target_may_be_of_any_name(
    inspector: Inspector, good: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd\n\udcff name"
    odd.symlink_to(good)
    assert (await inspect(inspector, odd)).tensors
