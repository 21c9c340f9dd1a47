"""Models in memory: bringing them there, keeping them there, saying how much of them is.

Memory here is the kernel's page cache, one copy for all workers that map a file. The policy is a
pure function; the system calls are in pages and run in threads, those that read in one thread
of lowest I/O priority, because disks like one reader and others' requests go first.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from craftcache.amounts import size_text
from craftcache.errors import PolicyDenied
from craftcached.singleflight import SingleFlight

from . import page_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

__all__ = ["MachineMemory", "Residency", "has_room"]

T = TypeVar("T")

RESERVE_DIVISOR = 10
"""Part of the memory that stays available, whatever is brought in: a tenth."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The machine's memory.

    Attributes:
        total: Bytes.
        available: Bytes that programs could have without swapping; the page cache is among them.
    """

    total: int
    available: int

    @classmethod
    def read(cls) -> MachineMemory:
        """As the kernel gives it now."""
        with open("/proc/meminfo", encoding="ascii") as lines:
            values = dict(line.split(":", 1) for line in lines)
        total, available = (
            int(values[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable")
        )
        return cls(total, available)


def has_room(memory: MachineMemory, taken: int) -> bool:
    """Whether a tenth of memory is available beside ``taken`` bytes.

    Args:
        memory: The memory at this moment.
        taken: Bytes to subtract from what is available: pages that were read in, which the kernel
            would reclaim again if more were read than fits.
    """
    return memory.available - taken >= memory.total // RESERVE_DIVISOR


class Residency:
    """Brings files into memory and locks them there; an async context manager.

    What two ask for at once is read once. Cancelling stops the reading within one window.

    Args:
        memory: Says how much memory there is.
    """

    def __init__(self, memory: Callable[[], MachineMemory] = MachineMemory.read) -> None:
        self._memory = memory
        self._reads: SingleFlight[None, int] = SingleFlight()
        self._thread = ThreadPoolExecutor(1, "residency", initializer=page_cache.lower_io_priority)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._thread.shutdown)

    async def resident(self, paths: Iterable[str | os.PathLike[str]]) -> int | None:
        """Bytes of these files that are in memory; None where the kernel does not say."""
        (found,) = await self.resident_each((paths,))
        return found

    async def resident_each(
        self, groups: Iterable[Iterable[str | os.PathLike[str]]]
    ) -> list[int | None]:
        """Bytes of each group of files that are in memory; see resident."""
        wanted = [tuple(paths) for paths in groups]
        return await asyncio.to_thread(lambda: list(map(_resident, wanted)))

    async def bring(self, path: Path, report: Callable[[int], None]) -> None:
        """Read a file into memory, as far as a tenth of memory stays available.

        Args:
            path: The file; one that is removed meanwhile is no error.
            report: Called with the bytes done.
        """
        async with self._reads.join(path, lambda tell: self._bring(path, tell), report):
            pass

    async def lock(self, paths: Sequence[Path]) -> list[page_cache.LockedFile]:
        """Lock files in memory; the caller closes them.

        Raises:
            PolicyDenied: There is not enough memory, or this process may not lock as much.
            FileNotFoundError: One was removed.
        """
        locked: list[page_cache.LockedFile] = []
        try:
            await self._in_thread(lambda is_wanted: _lock(paths, locked, self._memory(), is_wanted))
        except BaseException:
            for file in locked:
                file.close()
            raise
        return locked

    async def _bring(self, path: Path, report: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()

        def read(is_wanted: Callable[[], bool]) -> None:
            def go_on(done: int) -> bool:
                loop.call_soon_threadsafe(report, done)
                return is_wanted() and has_room(self._memory(), done)

            try:
                descriptor = _open(path)
            except FileNotFoundError:
                return
            try:
                page_cache.read_in(descriptor, go_on)
            finally:
                os.close(descriptor)

        await self._in_thread(read)

    async def _in_thread(self, work: Callable[[Callable[[], bool]], T]) -> T:
        """Run ``work`` in the reading thread, with a function that says whether to go on."""
        unwanted = threading.Event()
        submitted = self._thread.submit(work, lambda: not unwanted.is_set())
        running = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            unwanted.set()
            if not submitted.cancel():
                await asyncio.wait([running])
            raise


def _resident(paths: Iterable[str | os.PathLike[str]]) -> int | None:
    total = 0
    for path in paths:
        try:
            descriptor = _open(path)
        except FileNotFoundError:  # nothing of it is in memory; the others are counted
            continue
        except OSError:
            return None
        try:
            found = page_cache.resident_bytes(descriptor)
        finally:
            os.close(descriptor)
        if found is None:
            return None
        total += found
    return total


def _lock(
    paths: Sequence[Path],
    locked: list[page_cache.LockedFile],
    memory: MachineMemory,
    is_wanted: Callable[[], bool],
) -> None:
    """Add each file to ``locked``, which stays the caller's whatever is raised."""
    size = sum(path.stat().st_size for path in paths)
    if not has_room(memory, size):
        raise PolicyDenied(
            f"locking {size_text(size)} would leave less than a tenth of memory available",
            hint="Unpin another model, or pin without --lock",
        )
    for path in paths:
        descriptor = _open(path)
        try:
            locked.append(page_cache.LockedFile(descriptor, lambda _: is_wanted()))
        finally:
            os.close(descriptor)


def _open(path: str | os.PathLike[str]) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
