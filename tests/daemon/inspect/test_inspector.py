"""The inspector as a set of processes: started late, killed, starved, withdrawn, left behind."""

from __future__ import annotations

import asyncio
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
from craftcache.errors import NotACheckpoint, Unavailable
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
    """A checkpoint that takes hours to unpickle: it counts the letters of one text, often."""
    text = Op.value("a" * 10_000_000) + b"q\x01"
    counter = Op.name("collections.Counter") + b"q\x00"
    path = tmp_path / "endless.bin"
    path.write_bytes(archive(Op.whole(text, counter, b"](", b"h\x00h\x01\x85R" * 100_000, b"e")))
    return path


async def inspect(inspector: Inspector, path: Path) -> Index:
    data = await inspector.inspect(path, source="org/name")
    return parse(data, file_size=path.stat().st_size)


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and not yet buried."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def parents(pid: int) -> list[int]:
    """The warm parents among the children of ``pid``."""
    return [
        child
        for child in children(pid)
        if b"craftcached.inspect.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


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


async def test_the_daemon_never_imports_torch(good: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from craftcached.inspect import Inspector\n"
        "async def main():\n"
        "    async with Inspector() as inspector:\n"
        "        print(len(await inspector.inspect(Path(sys.argv[1]), source='s')))\n"
        "asyncio.run(main()); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, good], capture_output=True, check=True)
    assert int(done.stdout) > 0


async def test_no_parent_before_the_first_file_and_none_after_the_end(good: Path) -> None:
    others = parents(os.getpid())
    async with Inspector() as own:
        assert parents(os.getpid()) == others
        await inspect(own, good)
        assert len(parents(os.getpid())) == len(others) + 1
    assert parents(os.getpid()) == others


async def test_omegaconf_configs_are_safe_and_have_no_index(
    inspector: Inspector, tmp_path: Path
) -> None:
    path = tmp_path / "mbd.th"
    path.write_bytes(saved({"xp.cfg": OmegaConf.create({"a": [1]}), "sample_rate": 32000}))
    index = await inspect(inspector, path)
    assert index.reason == "it holds a omegaconf.dictconfig.DictConfig"
    assert index.value("sample_rate") == 32000


async def test_many_files_at_once_start_one_parent(inspector: Inspector, good: Path) -> None:
    indexes = await asyncio.gather(*(inspect(inspector, good) for _ in range(8)))
    assert all(index == indexes[0] for index in indexes)
    assert len(parents(os.getpid())) == 1


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


async def test_withdrawing_ends_the_child_at_once(
    inspector: Inspector, good: Path, endless: Path
) -> None:
    withdrawn = asyncio.create_task(inspect(inspector, endless))
    await inspect(inspector, good)  # the parent takes requests in order: the other is at work
    (parent,) = parents(os.getpid())
    (child,) = children(parent)
    ended = os.pidfd_open(child)
    withdrawn.cancel()
    await wait_for_end(ended)
    with pytest.raises(asyncio.CancelledError):
        await withdrawn
    await inspect(inspector, good)


async def test_a_killed_child_says_nothing_about_its_file(
    inspector: Inspector, good: Path, endless: Path
) -> None:
    task = asyncio.create_task(inspect(inspector, endless))
    await inspect(inspector, good)
    (parent,) = parents(os.getpid())
    os.kill(children(parent)[0], signal.SIGKILL)
    with pytest.raises(Unavailable, match="was killed"):
        await task


async def test_a_crashed_child_is_a_refusal(
    inspector: Inspector, good: Path, endless: Path
) -> None:
    task = asyncio.create_task(inspect(inspector, endless))
    await inspect(inspector, good)
    (parent,) = parents(os.getpid())
    os.kill(children(parent)[0], signal.SIGSEGV)
    with pytest.raises(NotACheckpoint, match=r"crashes torch \(SIGSEGV\)"):
        await task
    await inspect(inspector, good)


async def test_a_killed_parent_is_replaced_under_the_jobs_that_were_with_it(
    inspector: Inspector, good: Path, tmp_path: Path
) -> None:
    await inspect(inspector, good)
    (first,) = parents(os.getpid())
    task = asyncio.create_task(inspect(inspector, good))
    os.kill(first, signal.SIGKILL)
    assert (await task).tensors
    assert parents(os.getpid()) != [first]


async def test_children_die_with_their_parent(
    inspector: Inspector, good: Path, endless: Path
) -> None:
    task = asyncio.create_task(inspect(inspector, endless))
    await inspect(inspector, good)
    (parent,) = parents(os.getpid())
    ended = os.pidfd_open(children(parent)[0])
    os.kill(parent, signal.SIGKILL)
    await wait_for_end(ended)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("patience", [0.0, 0.05, 0.3])
async def test_leaving_while_the_parent_starts_leaves_nothing(good: Path, patience: float) -> None:
    others = parents(os.getpid())
    async with Inspector() as own:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(patience):  # wherever the start has got to by then
                await inspect(own, good)
    assert parents(os.getpid()) == others


async def test_leaving_ends_the_jobs_at_work_for_good(good: Path, endless: Path) -> None:
    others = parents(os.getpid())
    async with Inspector() as own:
        task = asyncio.create_task(inspect(own, endless))
        await inspect(own, good)
    with pytest.raises(Unavailable, match="shut down"):
        await task
    assert parents(os.getpid()) == others


async def test_nothing_outlives_a_killed_daemon(good: Path, endless: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from craftcached.inspect import Inspector\n"
        "async def main():\n"
        "    async with Inspector() as inspector:\n"
        "        slow = asyncio.create_task(inspector.inspect(Path(sys.argv[2]), source='s'))\n"
        "        await inspector.inspect(Path(sys.argv[1]), source='s')\n"
        "        print('ready', flush=True)\n"
        "        await slow\n"
        "asyncio.run(main())"
    )
    daemon = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, good, endless), stdout=subprocess.PIPE
    )
    assert daemon.stdout is not None
    assert await daemon.stdout.readline() == b"ready\n"
    (parent,) = parents(daemon.pid)
    (child,) = children(parent)
    ends = [os.pidfd_open(parent), os.pidfd_open(child)]
    daemon.kill()
    await daemon.wait()
    for end in ends:
        await wait_for_end(end)


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
