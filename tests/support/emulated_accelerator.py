"""A device that is emulated on the CPU, as asynchronous as a real one and less obliging.

What is enqueued is done by threads of the device, in any order that streams and marks allow, and as
late as can be: a lazy device does nothing before somebody waits for it. Memory that it allocates is
still written to by what ran before on the caller's stream. So whoever uses a buffer again too soon,
or memory before it may be used, finds wrong bytes there.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from craftcache.checkpoint.storages import storage_of
from craftcache.device.accelerator import DeviceWork, NoDeviceMemory, PinnedBuffer
from craftcache.errors import DeviceLost, ResourceLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.multiprocessing.reductions import StorageWeakRef

    from craftcache.device.accelerator import Mark

ENGINES = 2
"""Threads of a device."""

STALE = 0xA5
"""What memory holds that was just allocated, as soon as the caller's stream has got there."""

WAIT_SECONDS = 60.0
"""How long a wait for the device may take; it fails then, and never passes by waiting."""


class EmulatedAccelerator:
    """See Accelerator.

    Args:
        capacity: Memory of the device in bytes; None for as much as there is.
        pinned_buffers: Buffers that the system gives at most; None for any number.
        lazy: Whether nothing is done before somebody waits.
        lost_after: Pieces of work after which the device fails; None if it does not.
        lost_when: Whether it says so when it is ``told`` of the next, or ``waited for``.
        seed: Decides in which order things are done.
    """

    kind = "emulated"

    def __init__(
        self,
        *,
        capacity: int | None = None,
        pinned_buffers: int | None = None,
        lazy: bool = True,
        lost_after: int | None = None,
        lost_when: str = "told",
        seed: int = 0,
    ) -> None:
        self.device = torch.device("cpu")
        self.capacity = capacity
        self.pinned_buffers = pinned_buffers
        self.peak_bytes = 0
        self.gave_back = 0
        self.enqueued: list[tuple[int, int]] = []
        """How many uploads and spreads each piece of work was."""
        self._lazy = lazy
        self._left = lost_after
        self._lost_when = lost_when
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._waiting = 0
        self._streams: list[_Stream] = []
        self._memory: list[tuple[StorageWeakRef, int]] = []
        self._pinned: list[weakref.ref[torch.Tensor]] = []
        self._closed = False
        self._current = self._new_stream()
        self._engines = [threading.Thread(target=self._run, daemon=True) for _ in range(ENGINES)]
        for engine in self._engines:
            engine.start()

    def close(self) -> None:
        """End its threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for engine in self._engines:
            engine.join()

    def entered(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def new_stream(self) -> _Stream:
        return self._new_stream()

    def _new_stream(self) -> _Stream:
        stream = _Stream(self)
        with self._changed:
            self._streams.append(stream)
        return stream

    def mark(self) -> Mark:
        return self._current.add(lambda: None, None)

    def allocate(self, nbytes: int) -> torch.Tensor:
        if self.capacity is not None and self.used_bytes + nbytes > self.capacity:
            raise NoDeviceMemory(f"no room for {nbytes}")
        memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        self._memory.append((storage_of(memory), nbytes))
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        stale = weakref.ref(memory)
        self._current.add(lambda: _spoil(stale()), None)
        return memory

    @property
    def used_bytes(self) -> int:
        """Memory of the device that somebody has."""
        with self._changed:  # what is being done on the device keeps its memory for that long
            self._changed.wait_for(lambda: not any(stream.busy for stream in self._streams))
            memory: Any = self._memory  # torch leaves it untyped
            self._memory = [each for each in memory if not each[0].expired()]
            return sum(nbytes for _, nbytes in self._memory)

    def pin(self, nbytes: int) -> PinnedBuffer:
        if self.pinned_buffers is not None and self.pinned >= self.pinned_buffers:
            raise ResourceLimit("the system gives no page-locked memory")
        memory = mmap.mmap(-1, nbytes)
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        with self._changed:
            self._pinned.append(weakref.ref(tensor))
        return PinnedBuffer(tensor, memoryview(memory), self._return_memory)

    def _return_memory(self) -> None:
        pass

    @property
    def pinned(self) -> int:
        """Buffers that somebody has."""
        with self._changed:
            return sum(1 for pinned in self._pinned if pinned() is not None)

    def free_bytes(self) -> int | None:
        return None if self.capacity is None else self.capacity - self.used_bytes

    def give_back(self) -> None:
        self.gave_back += 1

    def enqueue(self, stream: _Stream, work: DeviceWork) -> Mark:
        """Have ``work`` done after all that is in ``stream``."""
        with self._changed:
            self.enqueued.append((len(work.uploads), len(work.spreads)))
            if self._left is not None:
                self._left -= 1
            is_lost = self._left is not None and self._left < 0
        if is_lost and self._lost_when == "told":
            _fail()
        after = work.after
        assert after is None or isinstance(after, _Mark)
        return stream.add(_fail if is_lost else lambda: _copy_all(work), after)

    def add(self, stream: _Stream, do: Callable[[], object], after: _Mark | None) -> _Mark:
        mark = _Mark(self)
        with self._changed:
            stream.queue.append((do, after, mark))
            self._changed.notify_all()
        return mark

    def wait_for(self, mark: _Mark) -> None:
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            try:
                if not self._changed.wait_for(lambda: mark.reached, WAIT_SECONDS):
                    raise AssertionError("the emulated device hangs")
            finally:
                self._waiting -= 1
        if mark.failure is not None:
            raise DeviceLost(mark.failure)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            stream, (do, _, mark) = taken
            try:
                do()
            except Exception as error:  # noqa: BLE001  # a test sees it
                mark.failure = str(error)
            del taken, do  # what is done keeps nothing alive
            with self._changed:
                mark.reached = True
                stream.busy = False
                self._changed.notify_all()

    def _take(self) -> tuple[_Stream, Any] | None:
        with self._changed:
            while not self._closed:
                ready = [stream for stream in self._streams if stream.is_ready()]
                if ready and (self._waiting or not self._lazy):
                    stream = self._random.choice(ready)
                    stream.busy = True
                    return stream, stream.queue.popleft()
                self._changed.wait()
            return None


class _Mark:
    def __init__(self, accelerator: EmulatedAccelerator) -> None:
        self._accelerator = accelerator
        self.reached = False
        self.failure: str | None = None

    def is_reached(self) -> bool:
        return self.reached

    def wait(self) -> None:
        self._accelerator.wait_for(self)


class _Stream:
    def __init__(self, accelerator: EmulatedAccelerator) -> None:
        self._accelerator = accelerator
        self.queue: deque[tuple[Callable[[], object], _Mark | None, _Mark]] = deque()
        self.busy = False

    def is_ready(self) -> bool:
        if self.busy or not self.queue:
            return False
        _, after, _ = self.queue[0]
        return after is None or after.reached

    def add(self, do: Callable[[], object], after: _Mark | None) -> _Mark:
        return self._accelerator.add(self, do, after)

    def enqueue(self, work: DeviceWork) -> Mark:
        return self._accelerator.enqueue(self, work)


def _fail() -> None:
    raise DeviceLost("cpu failed (an emulated failure)")


def _spoil(memory: torch.Tensor | None) -> None:
    if memory is not None:
        memory.fill_(STALE)


def _copy_all(work: DeviceWork) -> None:
    with torch.no_grad():
        for target, position, nbytes in work.uploads:
            assert target.nbytes == nbytes
            target.copy_(work.buffer.tensor[position : position + nbytes])
        for target, source in work.spreads:
            assert target.numel() == source.numel()
            target.copy_(source)


@contextlib.contextmanager
def emulated(**options: Any) -> Iterator[EmulatedAccelerator]:
    """An emulated device."""
    accelerator = EmulatedAccelerator(**options)
    try:
        yield accelerator
    finally:
        accelerator.close()
