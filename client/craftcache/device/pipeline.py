"""Threads that read into page-locked buffers and have a device copy from there, all at once.

A job is what goes through one buffer. Whoever makes the jobs submits them in order, and any thread
takes the next: it reads into a buffer, enqueues the copies upon its own stream, and goes on with
its second buffer while the device copies. Jobs end in any order, so no two may write to the same
memory. ``drain`` returns when the device has done all of it: what the caller then enqueues, on
whatever stream, comes after.

The first failure stops everything: what is queued is dropped, what the device was told to do is
waited for, and the buffers go back, so that afterwards nobody writes to memory that is freed.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from .accelerator import DeviceWork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import torch
    from typing_extensions import Self

    from .accelerator import Accelerator, CopyStream, Mark, PinnedBuffer
    from .staging import StagingRing

__all__ = ["CopyJob", "Part", "Pipeline", "Reading"]

MAX_READERS: Final = 16
"""Threads of a load at most; a few already read faster than a link takes it."""

_IN_FLIGHT: Final = 2
"""Buffers of a thread: one is filled while the device copies from the other."""


class Reading(Protocol):
    """Something that is read into a buffer."""

    def fill(self, buffer: PinnedBuffer) -> None:
        """Read it, to its place in the buffer."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is copied out of a buffer.

    Attributes:
        target: Where to, on the device.
        dtype: Dtype of the elements in the buffer; another than the target's is cast there.
        position: Place in the buffer, in bytes; aligned for the dtype.
        nbytes: Size in the buffer.
    """

    target: torch.Tensor
    dtype: torch.dtype
    position: int
    nbytes: int

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        """The elements, in a buffer or what was copied of one."""
        return memory[self.position : self.position + self.nbytes].view(self.dtype)


@dataclass(frozen=True, slots=True)
class CopyJob:
    """What goes through one buffer.

    Attributes:
        readings: What is read.
        parts: What is copied.
        after: The point of the caller's stream from which the targets may be written to.
        used: Bytes of the buffer up to the end of the last part.
        staging: Memory on the device of that size at least: the buffer is copied to it at once,
            and its parts from there. None to copy each part by itself, which casts nothing.
            Jobs that share it are done one after the other.
    """

    readings: Sequence[Reading]
    parts: Sequence[Part]
    after: Mark
    used: int
    staging: torch.Tensor | None = None


class Pipeline:
    """One load; a context, which ends when all is done or nothing goes on any more.

    It belongs to one thread, which submits and drains.

    Args:
        accelerator: The device.
        ring: Where buffers come from.
        check: Raises what is to end the load, such as a cancellation; called before each job, in
            the threads.
        readers: Threads at most; None takes as many as there are processors, up to MAX_READERS.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        ring: StagingRing,
        *,
        check: Callable[[], None] = lambda: None,
        readers: int | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._ring = ring
        self._check = check
        self._readers = readers or min(MAX_READERS, _processors())
        self._jobs: queue.SimpleQueue[CopyJob | None] = queue.SimpleQueue()
        """Jobs to do; None ends the thread that takes it."""
        self._threads: list[threading.Thread] = []
        self.failed = False
        """Whether something failed, so that nothing more is done."""
        # Guards _pending, failed and _error. Nothing blocks and no other lock is taken inside.
        self._changed = threading.Condition()
        self._pending = 0
        """Jobs that were submitted and are not over."""
        self._error: BaseException | None = None
        """The first failure, until it is raised."""
        # Held while a job that shares memory on the device is enqueued, so that its work stands
        # in a row. It may block for as long as that takes; no other lock is taken inside.
        self._staging_turn = threading.Lock()
        self._staging_stream: CopyStream | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)
        try:
            self._wait()
        except BaseException as interrupt:
            self.fail(interrupt)
            raise
        finally:
            for _thread in self._threads:
                self._jobs.put(None)
            for thread in self._threads:
                thread.join()
        if error is None:
            self._raise_failure()
        self._error = None

    def fail(self, error: BaseException) -> None:
        """Stop; ``drain`` raises ``error``, if it is the first."""
        with self._changed:
            if not self.failed:
                self.failed = True
                self._error = error

    def submit(self, job: CopyJob) -> None:
        """Have a job done; it is dropped if something has failed, which ``drain`` raises."""
        with self._changed:
            self._pending += 1
            wanted = min(self._pending, self._readers)
        self._jobs.put(job)
        if len(self._threads) < wanted:
            self._start_thread()

    def drain(self) -> None:
        """Wait until all that was submitted is done, on the device too.

        Raises:
            Exception: The first failure of a reading, of the device or of ``check``.
        """
        self._wait()
        self._raise_failure()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="craftcache-device", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # this process may have no more
            self._readers = len(self._threads)
        else:
            self._threads.append(thread)

    def _wait(self) -> None:
        if not self._threads:  # there may be none, or nothing to do: then it is done here
            self._jobs.put(None)
            self._work()
        with self._changed:
            while self._pending:
                self._changed.wait()

    def _raise_failure(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its frames have the tensors: with no cycle they go when it does

    def _over(self) -> None:
        with self._changed:
            self._pending -= 1
            self._changed.notify_all()

    def _work(self) -> None:
        """Do jobs until there are no more; in each thread."""
        try:
            with self._accelerator.entered():
                self._work_upon(self._accelerator.new_stream())
        except BaseException as error:  # noqa: BLE001  # drain raises it
            self.fail(error)
            while self._jobs.get() is not None:
                self._over()

    def _work_upon(self, stream: CopyStream) -> None:
        in_flight: _InFlight = deque()
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:  # nobody is to wait for a buffer while this waits for a job
                self._settle(in_flight)
                job = self._jobs.get()
            if job is None:
                self._settle(in_flight)
                return
            try:
                begun = self._begin(job, stream, in_flight)
            except BaseException as error:  # noqa: BLE001  # drain raises it
                self.fail(error)
                begun = False
            if not begun:
                self._over()

    def _begin(self, job: CopyJob, stream: CopyStream, in_flight: _InFlight) -> bool:
        """Read a job and have the device copy; False if nothing more is to be done."""
        if self.failed:
            return False
        self._check()
        buffer = self._buffer(in_flight)
        if buffer is None:
            return False
        try:
            for reading in job.readings:
                reading.fill(buffer)
        except BaseException:
            self._ring.give_back(buffer)
            raise
        try:
            mark = self._enqueue(job, buffer, stream)
        except BaseException:  # the device may have begun
            self._ring.give_back(buffer, clean=False)
            raise
        in_flight.append((mark, buffer))
        return True

    def _buffer(self, in_flight: _InFlight) -> PinnedBuffer | None:
        """A buffer to fill: a new one or, if this thread has its share, its oldest."""
        if not in_flight:
            return self._ring.take(self._accelerator, self._goes_on)
        if len(in_flight) < _IN_FLIGHT:
            buffer = self._ring.take_nowait(self._accelerator)
            if buffer is not None:
                return buffer
        return self._finish_oldest(in_flight)

    def _goes_on(self) -> bool:
        self._check()
        return not self.failed

    def _enqueue(self, job: CopyJob, buffer: PinnedBuffer, stream: CopyStream) -> Mark:
        if job.staging is None:
            copies = [(part.target, part.of(buffer.tensor)) for part in job.parts]
            return stream.enqueue(DeviceWork(job.after, copies))
        upload = job.staging[: job.used], buffer.tensor[: job.used]
        copies = [(part.target, part.of(job.staging)) for part in job.parts]
        with self._staging_turn:
            if self._staging_stream is None:
                self._staging_stream = self._accelerator.new_stream()
            return self._staging_stream.enqueue(DeviceWork(job.after, [upload], copies))

    def _settle(self, in_flight: _InFlight) -> None:
        """Wait for the device, and give the buffers back."""
        while in_flight:
            if (buffer := self._finish_oldest(in_flight)) is not None:
                self._ring.give_back(buffer)

    def _finish_oldest(self, in_flight: _InFlight) -> PinnedBuffer | None:
        """Wait until the device has done the oldest job; its buffer, or None if that failed."""
        mark, buffer = in_flight.popleft()
        try:
            mark.wait()
        except BaseException as error:  # noqa: BLE001  # drain raises it
            self.fail(error)
            self._ring.give_back(buffer, clean=False)
            return None
        finally:
            self._over()
        return buffer


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_InFlight: TypeAlias = "deque[tuple[Mark, PinnedBuffer]]"
"""Buffers that the device copies from, the oldest first, with the point at which it has done so."""
