"""The files in a GPU's memory: who has them, which go for others, and for how long one stays.

All state changes on the event loop. What is done to the device is done one after another, with
``_changing`` held: making room, making and filling a block, comparing one, and giving one up. A
file that is there is lent without it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from craftcache.amounts import counted, exact_size_text, size_text
from craftcache.device.accelerator import NoDeviceMemory
from craftcache.device.cuda_driver import CudaFailed
from craftcache.errors import BudgetExceeded, CraftcacheError, DeviceMemoryFull
from craftcache.wire import GpuComparison, GpuModel, GpuReport, Progress
from craftcached.singleflight import SingleFlight
from craftcached.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.cache.opened import OpenFile
    from craftcache.wire.gpu import GpuOutcome

    from .memory import GpuBlock, GpuMemory

__all__ = ["Holdings", "Lent"]

log = logging.getLogger("craftcached")

MAX_LEASES_PER_UID: Final = 4096
"""Each takes a descriptor of the service, so that one user must not have all."""


@dataclass(frozen=True, slots=True)
class Lent:
    """A file in the GPU's memory, lent to a worker; the descriptors are the receiver's to close.

    Attributes:
        descriptor: Descriptor of the block.
        lease: Keeps it here while any process has it open.
        nbytes: Size of the block.
    """

    descriptor: int
    lease: int
    nbytes: int


@dataclass(eq=False, slots=True)
class _Held:
    """A file in the GPU's memory."""

    source: str
    filename: str
    sha256: str
    size: int
    block: GpuBlock
    used_at: float
    leases: int = 0
    expiry: asyncio.TimerHandle | None = None


class Holdings:
    """The files in one GPU's memory; an async context manager, which gives up all at its end.

    Args:
        memory: The GPU's memory.
        max_bytes: Memory that all files may take.
        ttl: Seconds for which a file stays that nobody has.
        max_leases_per_uid: Leases of one user at most.

    Attributes:
        lost: Set when the device has failed: only a new process can use it again.
    """

    def __init__(
        self,
        memory: GpuMemory,
        *,
        max_bytes: int,
        ttl: float,
        max_leases_per_uid: int = MAX_LEASES_PER_UID,
    ) -> None:
        self._memory = memory
        self._max_bytes = max_bytes
        self._ttl = ttl
        self._max_leases_per_uid = max_leases_per_uid
        self._held: dict[str, _Held] = {}
        self._coming = 0
        self._leases: dict[int, tuple[_Held, int]] = {}
        self._of_uid: Counter[int] = Counter()
        self._flights: SingleFlight[_Held, Progress] = SingleFlight()
        self._changing = asyncio.Lock()
        self._device = Threads(1, "craftcached-gpu")
        self._looks = Threads(1, "craftcached-gpu-look")
        self._expiring: set[asyncio.Task[None]] = set()
        self.lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._expiring:
            task.cancel()
        await asyncio.gather(*self._expiring, return_exceptions=True)
        for descriptor in list(self._leases):
            self._give_back(descriptor)
        async with self._changing:
            for held in list(self._held.values()):
                await self._give_up(held)
        self._device.close()
        self._looks.close()

    @property
    def used_bytes(self) -> int:
        """Memory that files take, one that is being copied included."""
        return self._coming + sum(held.block.nbytes for held in self._held.values())

    def has(self, sha256: str) -> bool:
        """Whether a file is there."""
        return sha256 in self._held

    async def lend(
        self, source: str, file: OpenFile, sha256: str, uid: int, report: Callable[[Progress], None]
    ) -> Lent:
        """Lend a file to a process of a user, copying it first if it is not there.

        Args:
            source: Its source as shown to people.
            file: The verified file.
            sha256: Its digest.
            uid: The user.
            report: Called with progress; must not block.

        Raises:
            DeviceMemoryFull: There is no room for it; a retry may help once others let go.
            BudgetExceeded: The user has too many leases.
            CraftcacheError: The device failed.
            OSError, EOFError: The file cannot be read.
        """
        if self._of_uid[uid] >= self._max_leases_per_uid:
            raise BudgetExceeded(
                f"uid {uid} has {counted(self._of_uid[uid], 'lease')} of models in the GPU's "
                "memory",
                source=source,
                hint="Let go of what its processes have loaded with share",
            )
        bring = partial(self._bring, source, file, sha256)
        while True:
            if (held := self._held.get(sha256)) is not None:
                return self._lend(held, uid)
            async with self._flights.join(sha256, bring, report) as held:
                if self._held.get(sha256) is held:  # it may be gone again by now
                    return self._lend(held, uid)

    async def report(self) -> GpuReport:
        """What is there now."""
        now = self._loop.time()
        newest = sorted(self._held.values(), key=lambda held: (-held.leases, -held.used_at))
        models = [
            GpuModel(
                held.source,
                held.filename,
                held.sha256,
                held.block.nbytes,
                held.leases,
                None if held.leases else max(now - held.used_at, 0.0),
            )
            for held in newest
        ]
        used = self.used_bytes
        try:
            free = await self._looks.run(self._memory.free_bytes)
        except CudaFailed:
            free = None
        memory = self._memory
        return GpuReport(
            memory.uuid, memory.name, used, self._max_bytes, free, memory.total_bytes, tuple(models)
        )

    async def verify(self) -> list[GpuComparison]:
        """Compare all files with their digests; what is wrong is given up.

        Raises:
            CraftcacheError: The device failed.
        """
        comparisons = []
        async with self._changing:
            for held in list(self._held.values()):
                try:
                    found = await self._device.run(held.block.sha256, held.size)
                except CudaFailed as error:
                    raise self._failed(error) from error
                is_right = found == held.sha256
                if not is_right:
                    log.error(
                        "%s: %s is wrong in the memory of GPU %s, and is handed out no more; "
                        "leases of it that are out: %d",
                        *(held.source, held.filename, self._memory.uuid, held.leases),
                    )
                    await self._give_up(held)
                outcome: GpuOutcome = "right" if is_right else "wrong"
                comparisons.append(
                    GpuComparison(
                        self._memory.uuid, held.source, held.filename, held.sha256, outcome
                    )
                )
        return comparisons

    async def _bring(
        self, source: str, file: OpenFile, sha256: str, report: Callable[[Progress], None]
    ) -> _Held:
        """Copy a file into the GPU's memory."""
        size, filename = file.info.size, file.info.filename
        report(Progress(source, filename, 0, size, "reading"))
        async with self._changing:
            began = self._loop.time()
            self._coming = self._memory.block_bytes(size)
            try:
                block = await self._room(source, size)
                try:
                    await self._device.run(block.fill, file.descriptor, size)
                except BaseException:
                    await self._device.run(block.close)
                    raise
            except CudaFailed as error:
                raise self._failed(error) from error
            finally:
                self._coming = 0
            now = self._loop.time()
            held = _Held(source, filename, sha256, size, block, now)
            self._held[sha256] = held
            self._start_to_expire(held)
        log.info(
            "%s: %s is in the memory of GPU %s: %s, %.2f s",
            *(source, filename, self._memory.uuid, size_text(block.nbytes), now - began),
        )
        return held

    async def _room(self, source: str, size: int) -> GpuBlock:
        """A block for a file of ``size`` bytes, for which what nobody has makes room."""
        needed = self._coming
        while self.used_bytes > self._max_bytes:
            lent = sum(held.block.nbytes for held in self._held.values() if held.leases)
            if (victim := self._victim()) is None or lent + needed > self._max_bytes:
                free = max(self._max_bytes - lent, 0)
                raise self._full(source, needed, free, "gpu_max_bytes leaves")
            await self._give_up(victim)
        while True:
            try:
                return await self._created(size)
            except NoDeviceMemory:
                if (victim := self._victim()) is not None:
                    await self._give_up(victim)
                    continue
            free_bytes = await self._looks.run(self._memory.free_bytes)
            raise self._full(source, needed, free_bytes or 0, "other processes leave")

    async def _created(self, size: int) -> GpuBlock:
        """A new block; given up again where who waits for it goes away meanwhile."""
        made: list[GpuBlock] = []
        try:
            await self._device.run(lambda: made.append(self._memory.create(size)))
        except asyncio.CancelledError:
            for block in made:
                await self._device.run(block.close)
            raise
        return made[0]

    def _full(self, source: str, needed: int, free: int, who: str) -> DeviceMemoryFull:
        return DeviceMemoryFull(
            f"it needs {exact_size_text(needed)} of GPU {self._memory.uuid} to be shared there, "
            f"and {who} {exact_size_text(free)}",
            needed_bytes=needed,
            free_bytes=free,
            source=source,
            hint="Let go of other models, raise gpu_max_bytes, or load without share",
            retryable=needed <= self._max_bytes,
        )

    def _victim(self) -> _Held | None:
        """The file that nobody has and that was used longest ago."""
        idle = [held for held in self._held.values() if not held.leases]
        return min(idle, key=lambda held: held.used_at, default=None)

    async def _give_up(self, held: _Held) -> None:
        """Hand a file out no more, ``_changing`` held; its memory is free once nobody has it."""
        if self._held.get(held.sha256) is held:
            del self._held[held.sha256]
        if held.expiry is not None:
            held.expiry.cancel()
        await self._device.run(held.block.close)
        log.info("%s: %s left the memory of GPU %s", held.source, held.filename, self._memory.uuid)

    def _failed(self, error: CudaFailed) -> CraftcacheError:
        """The error of a device that failed; it lets workers make copies of their own."""
        log.error("GPU %s failed: %s", self._memory.uuid, error)
        self.lost.set()
        return CraftcacheError(f"GPU {self._memory.uuid} failed: {error}", hint="See the log")

    # --- Leases ---

    def _lend(self, held: _Held, uid: int) -> Lent:
        descriptor = held.block.export()
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except BaseException:
            os.close(descriptor)
            raise
        self._leases[ours] = held, uid
        self._of_uid[uid] += 1
        held.leases += 1
        if held.expiry is not None:
            held.expiry.cancel()
            held.expiry = None
        # At its end, or where a worker writes to it, which it has no reason to.
        self._loop.add_reader(ours, self._give_back, ours)
        return Lent(descriptor, theirs, held.block.nbytes)

    def _give_back(self, descriptor: int) -> None:
        """Note that no process has a lease any more."""
        self._loop.remove_reader(descriptor)
        held, uid = self._leases.pop(descriptor)
        os.close(descriptor)
        self._of_uid[uid] -= 1
        if not self._of_uid[uid]:
            del self._of_uid[uid]
        held.leases -= 1
        held.used_at = self._loop.time()
        if not held.leases and self._held.get(held.sha256) is held:
            self._start_to_expire(held)

    def _start_to_expire(self, held: _Held) -> None:
        held.expiry = self._loop.call_later(self._ttl, self._expire, held)

    def _expire(self, held: _Held) -> None:
        held.expiry = None
        task = self._loop.create_task(self._give_up_idle(held))
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _give_up_idle(self, held: _Held) -> None:
        async with self._changing:
            is_there = self._held.get(held.sha256) is held
            # Lent meanwhile, and perhaps given back, it has a time of its own again.
            if is_there and not held.leases and held.expiry is None:
                await self._give_up(held)
