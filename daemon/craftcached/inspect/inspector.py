"""The daemon's side of inspection: a process for each file, whose end is survived."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
from typing import TYPE_CHECKING, Final, Self

from craftcache.checkpoint.index import MAX_BYTES, parse
from craftcache.errors import CraftcacheError, NotACheckpoint, Unavailable, from_problem

from .child import INDEX, PROBLEM
from .processes import InspectingProcesses, ServerEnded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Inspector"]

_ATTEMPTS: Final = 2
"""With a file, before the death of its process counts as the daemon's failure."""

_SHORT_BYTES: Final = 16 * 1024
"""Length up to which an index is parsed on the event loop: well under a millisecond."""

_HINT: Final = "Ask its publisher for a whole file that torch.save wrote"
"""For the many ways in which a file can be damaged, which all leave the same to do."""

_CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
)
"""Signals by which a process ends through its own fault, for want of memory or through a fault of
the disk; others come from another process."""


class Inspector:
    """Says whether a checkpoint is safe to load, and makes its index.

    Each file is inspected by a confined process of its own, see ``child``. Leaving the context ends
    those that are running.

    Args:
        cpu_seconds: CPU time that one file may take; one that takes more is no checkpoint.
        deadline: Seconds after which an inspection is given up, and tried again when the file is
            asked for again: it was the machine or its storage that was slow.
        concurrency: Number of files inspected at once.
    """

    def __init__(
        self, *, cpu_seconds: int = 60, deadline: float = 600.0, concurrency: int = 2
    ) -> None:
        self._cpu_seconds = cpu_seconds
        self._deadline = deadline
        self._concurrency = concurrency
        # Limits the processes at once; held from start to end of each. No lock is taken inside.
        self._slots = asyncio.Semaphore(concurrency)
        self._processes = InspectingProcesses()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._closed = True
        self._processes.kill()
        for _ in range(self._concurrency):  # until no inspection is running
            await self._slots.acquire()
        await self._processes.close()

    async def inspect(self, path: Path, *, source: str) -> bytes:
        """The index of the checkpoint at ``path``, as ``checkpoint.index.parse`` reads it.

        Args:
            path: A regular file, or a link to one.
            source: Named in errors.

        Raises:
            UnsafeCheckpoint: Loading it would call something; the message names it.
            NotACheckpoint: It is damaged, absurd, or no checkpoint.
            Unavailable: The machine was too slow, or the daemon is stopping.
            CraftcacheError: Inspection itself failed, through no fault of the file.
        """
        with _opened(path, source) as file:
            async with self._slots:
                return await self._inspect(file)

    async def _inspect(self, file: int) -> bytes:
        """Try once more where the process died: that may have been for another reason."""
        for _ in range(_ATTEMPTS):
            if self._closed:
                break
            try:
                return await self._look(file)
            except _Died as died:
                end = died
        if self._closed:
            raise Unavailable("inspection has been shut down")
        if isinstance(end, _Crashed) and await self._is_able():
            raise NotACheckpoint(f"its inspection crashes: the process {end}")
        raise CraftcacheError(
            f"the process that inspects it {end}",
            hint="The daemon's log and the kernel's may say why; memory may be short",
            retryable=True,
        )

    async def _is_able(self) -> bool:
        """Whether a process for another file reaches a verdict; else no file is to blame."""
        control = os.memfd_create("empty", os.MFD_CLOEXEC)
        try:
            await self._look(control)
        except NotACheckpoint:
            return True
        except (CraftcacheError, _Died):
            return False
        finally:
            os.close(control)
        return False

    async def _look(self, file: int) -> bytes:
        """What one process finds.

        Raises:
            _Died: It ended without a verdict.
            CraftcacheError: Its verdict.
        """
        result = os.memfd_create("index", os.MFD_CLOEXEC)
        try:
            status = await self._run(file, result)
            kind, found = os.pread(result, 1, 0), os.pread(result, MAX_BYTES, 1)
        finally:
            os.close(result)
        if kind not in (INDEX, PROBLEM):
            raise _no_verdict(status)
        size = os.fstat(file).st_size
        if len(found) <= _SHORT_BYTES:  # read sooner than a thread is asked
            return _verdict(kind, found, size)
        return await asyncio.to_thread(_verdict, kind, found, size)

    async def _run(self, file: int, result: int) -> int:
        """Have a child look at these two files; returns its return code."""
        try:
            return await self._processes.run(
                file, result, cpu_seconds=self._cpu_seconds, deadline=self._deadline
            )
        except ServerEnded:
            raise _Died("ended with the process that it was forked from") from None
        except TimeoutError as error:
            raise Unavailable(
                f"its inspection was not done within {self._deadline:g} s",
                hint="Try again when the machine or the cache's file system is less busy",
            ) from error


class _Died(Exception):
    """A process ended without a verdict; says how, after its name."""


class _Crashed(_Died):
    """It ended by what it did itself."""


@contextlib.contextmanager
def _opened(path: Path, source: str) -> Iterator[int]:
    """A checkpoint, open for reading; errors that leave this are about it."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise NotACheckpoint("it is no regular file", source=source)
        yield file
    except CraftcacheError as error:
        error.source = source
        if isinstance(error, NotACheckpoint):
            error.hint = error.hint or _HINT
        raise
    finally:
        os.close(file)


def _no_verdict(status: int) -> Exception:
    """The error for a child that gave no verdict.

    Args:
        status: The return code: the exit status, or minus the number of the signal.
    """
    if status == -signal.SIGXCPU:
        return NotACheckpoint("inspecting it takes more computing than any checkpoint needs")
    if -status in _CRASHES:
        return _Crashed(f"was killed by {signal.Signals(-status).name}")
    if status < 0:
        return _Died(f"was killed by signal {-status}")
    return _Died(f"failed with status {status}")


def _verdict(kind: bytes, found: bytes, file_size: int) -> bytes:
    """The index that a process wrote; blocks.

    Raises:
        CraftcacheError: The error that it wrote instead.
    """
    try:
        if kind == INDEX:
            parse(found, file_size=file_size)
            return found
        problem = json.loads(found)
        if not isinstance(problem, dict):
            raise TypeError("no problem document")
    except (TypeError, ValueError) as error:  # it was subverted, or is broken by its file
        raise NotACheckpoint("its inspection gave no result") from error
    raise from_problem(problem)
