"""Which processes have which models: known as long as they run, and no longer."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from craftcached.processes import MAX_MODELS, Processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

UID = os.getuid()


def no_files(_source: str) -> Sequence[Path]:
    return ()


@contextmanager
def running() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing until its standard input is closed."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", "of-the-test"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process


async def test_a_process_is_known_until_it_ends() -> None:
    with Processes() as processes, running() as process:
        processes.note(process.pid, UID, "org/a", "r1")
        processes.note(process.pid, UID, "org/b", "r1")
        processes.note(process.pid, UID, "org/a", "r2")
        [known] = await processes.all(no_files)
        assert (known.pid, known.uid) == (process.pid, UID)
        assert known.command.endswith("of-the-test")
        assert [(use.source, use.revision, use.loads) for use in known.models] == [
            ("org/b", "r1", 1),
            ("org/a", "r2", 2),
        ]
        assert process.stdin is not None
        process.stdin.close()
        while len(processes):
            await asyncio.sleep(0)
        assert await processes.all(no_files) == []


async def test_a_process_waits_as_long_as_its_request_takes() -> None:
    with Processes() as processes, running() as process:
        with (
            processes.waiting(process.pid, UID, "org/a"),
            processes.waiting(process.pid, UID, "org/a"),
        ):
            [known] = await processes.all(no_files)
            assert (known.waits_for, known.models) == (("org/a",), ())
        [known] = await processes.all(no_files)
        assert known.waits_for == ()


async def test_what_is_no_process_here_is_not_known() -> None:
    with Processes() as processes:
        for pid in (0, -1, 2**31 - 1, 2**70):
            processes.note(pid, UID, "org/a", "r1")
            with processes.waiting(pid, UID, "org/a"):
                pass
        assert len(processes) == 0


async def test_another_user_under_the_same_number_is_another_process() -> None:
    with Processes() as processes, running() as process:
        processes.note(process.pid, UID, "org/a", "r1")
        processes.note(process.pid, UID + 1, "org/b", "r1")
        [known] = await processes.all(no_files)
        assert [use.source for use in known.models] == ["org/b"]


async def test_no_more_models_are_remembered_than_may_be() -> None:
    with Processes() as processes:
        for number in range(MAX_MODELS + 10):
            processes.note(os.getpid(), UID, f"org/{number}", "r1")
        [known] = await processes.all(no_files)
    assert len(known.models) == MAX_MODELS
    assert known.models[-1].source == f"org/{MAX_MODELS + 9}"


async def test_whether_files_are_open_is_asked_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"x")

    async def is_open() -> bool | None:
        [known] = await processes.all(lambda _: [path, tmp_path / "gone"])
        return known.models[0].is_open

    with Processes() as processes:
        processes.note(os.getpid(), UID, "org/a", "r1")
        if await is_open() is None:
            pytest.skip("leases do not work here")
        assert await is_open() is False
        with path.open("rb"):
            assert await is_open() is True


async def test_the_files_of_a_model_are_looked_for_once_and_beside_the_event_loop() -> None:
    asked: list[tuple[str, int]] = []

    def files(source: str) -> Sequence[Path]:
        asked.append((source, threading.get_ident()))
        return ()

    with Processes() as processes, running() as one, running() as other:
        for process in (one, other):
            for source in ("org/a", "org/b"):
                processes.note(process.pid, UID, source, "r1")
        await processes.all(files)
    assert sorted(source for source, _ in asked) == ["org/a", "org/b"]
    assert threading.get_ident() not in {thread for _, thread in asked}
