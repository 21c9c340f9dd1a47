"""Threads that read into page-locked buffers, and one that has a device copy from there.

A job is what goes through one buffer. Whoever makes the jobs submits them in order; any reader
takes the next, reads it into a buffer and hands that to the copier, which enqueues the copies upon
the one stream of the load and gives the buffer to the next reader when the device has read it. One
stream keeps a link busy, and once the buffers are there nobody but the copier asks the driver for
anything: calls from several threads at once were seen to take twenty times as long. Jobs are done
in any order, so no two may write to the same memory. ``drain`` returns when the device has done all
of it: what the caller then enqueues, on whatever stream, comes after.

The first failure stops everything: what is queued is dropped, what the device was told to do is
waited for, and the buffers go back, so that afterwards nobody writes to memory that is freed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from .accelerator import DeviceWork, Upload

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from .accelerator import Accelerator, CopyStream, Mark, PinnedBuffer
    from .copy_job import CopyJob
    from .staging import StagingRing

__all__ = ["Pipeline"]

MAX_READERS: Final = 12
"""Readers of a load at most: more of them read no faster than a link takes it."""


class _Used(NamedTuple):
    """A buffer that was filled, and the point from which no device reads from it any more.

    There is none where no device does.
    """

    buffer: PinnedBuffer
    after: Mark | None

    def is_free(self) -> bool:
        """Whether it is certain by now."""
        return self.after is None or self.after.is_reached()


class Pipeline:
    """One load; a context, which ends when all is done or nothing goes on any more.

    It belongs to one thread, which submits and drains.

    Args:
        accelerator: The device.
        ring: Where buffers come from.
        check: Raises what is to end the load, such as a cancellation; called before each job, in
            the readers.
        readers: Readers at most; None takes as many as there are processors but for the copier's,
            up to MAX_READERS.
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
        self._readers = readers or max(1, min(MAX_READERS, _processors() - 1))
        self._jobs: queue.SimpleQueue[CopyJob | None] = queue.SimpleQueue()
        """Jobs to do; None ends the reader that takes it."""
        self._filled: queue.SimpleQueue[tuple[CopyJob, PinnedBuffer] | None] = queue.SimpleQueue()
        """Jobs that were read, with their buffers; None ends the copier."""
        self._free: queue.SimpleQueue[_Used] = queue.SimpleQueue()
        """Buffers of this load for the next reader."""
        self._in_flight: deque[_Used] = deque()
        """Buffers that the device reads from, the oldest first; the copier's alone."""
        self._copier: threading.Thread | None = None
        self._threads: list[threading.Thread] = []
        """The readers."""
        self.failed = False
        """Whether something failed, so that nothing more is done."""
        # Guards _pending, _held, failed, _error. Nothing blocks and no other lock is taken inside.
        self._changed = threading.Condition()
        self._held = 0
        """Buffers that this load has; at least one while a job that was read is not over, so that
        one comes to whoever waits for ``_free``."""
        self._pending = 0
        """Jobs that were submitted, until the device was told of them or they were dropped."""
        self._error: BaseException | None = None
        """The first failure, until it is raised."""
        self._stream: CopyStream | None = None
        self._last: Mark | None = None
        """The end of all that the device was told; both belong to whichever thread copies."""

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
            self._end_threads()
            self._wait_for_device()
        if error is None:
            self._raise_failure()
        self._error = None

    def _end_threads(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        if self._copier is not None:  # no reader hands it anything any more
            self._filled.put(None)
            self._copier.join()
        self._give_back_free()

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
            self._start_reader()

    def drain(self) -> None:
        """Wait until all that was submitted is done, on the device too.

        Raises:
            Exception: The first failure of a reading, of the device or of ``check``.
        """
        self._wait()
        self._wait_for_device()
        self._raise_failure()

    def _start_reader(self) -> None:
        try:
            if self._copier is None:  # without one, no reader either: all is done in ``drain``
                self._copier = _started(self._copy)
            self._threads.append(_started(self._read))
        except RuntimeError:  # this process may have no more
            self._readers = len(self._threads)

    def _wait(self) -> None:
        """Wait until the device was told of all that was submitted, or it was dropped."""
        if not self._threads:  # there may be none, or nothing to do: then it is done here
            self._jobs.put(None)
            self._read_here()
        with self._changed:
            while self._pending:
                self._changed.wait()

    def _read_here(self) -> None:
        """Read what there is, and copy it where there is no copier."""
        with contextlib.ExitStack() as stack:
            if self._copier is None:
                self._enter_device(stack)
            self._read()

    def _enter_device(self, stack: contextlib.ExitStack) -> None:
        """Have the calling thread's calls go to the device; if they cannot, nothing is done."""
        try:
            stack.enter_context(self._accelerator.entered())
        except BaseException as error:  # noqa: BLE001  # drain raises it
            self.fail(error)

    def _wait_for_device(self) -> None:
        last, self._last = self._last, None
        try:
            if last is not None:
                last.wait()
        except Exception as error:  # noqa: BLE001  # drain raises it
            self.fail(error)

    def _raise_failure(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its frames have the tensors: with no cycle they go when it does

    def _over(self) -> None:
        """A job is over."""
        with self._changed:
            self._pending -= 1
            if not self._pending:
                self._changed.notify_all()

    def _give_back_free(self) -> None:
        """Give the buffers that nobody uses back to the ring."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._give_back(self._free.get_nowait())

    def _give_back_in_flight(self) -> None:
        """Likewise those that the device reads from."""
        while self._in_flight:
            self._give_back(self._in_flight.popleft())

    def _give_back(self, used: _Used) -> None:
        with self._changed:
            self._held -= 1
        self._ring.give_back(used.buffer, after=used.after)

    def _read(self) -> None:
        """Read jobs until there are no more; in each reader."""
        while (job := self._jobs.get()) is not None:
            buffer = None
            try:
                buffer = self._take()
                if buffer is None:
                    self._over()
                    continue
                for reading in job.readings:
                    reading.fill(buffer)
            except BaseException as error:  # noqa: BLE001  # drain raises it
                self.fail(error)
                if buffer is not None:
                    self._free.put(_Used(buffer, None))
                self._over()
            else:
                if self._copier is not None:
                    self._filled.put((job, buffer))
                else:
                    self._send(job, buffer)
            del job, buffer  # while this waits it keeps nothing

    def _take(self) -> PinnedBuffer | None:
        """A buffer to fill; None if nothing more is to be done."""
        while self._goes_on():
            buffer = self._ring.take_nowait(self._accelerator) if self._ring.may_give else None
            if buffer is None and not self._held:
                buffer = self._ring.take(self._accelerator, self._has_none_and_goes_on)
            if buffer is not None:
                with self._changed:
                    self._held += 1
                return buffer
            if self._held:
                return self._next_free()
        return None

    def _next_free(self) -> PinnedBuffer | None:
        """The buffer of this load that is free next; None if nothing more is to be done."""
        if self._copier is None and self._free.empty():
            self._free_oldest()
        used = self._free.get()
        if not self.failed:
            return used.buffer
        self._free.put(used)  # for the next who waits
        return None

    def _has_none_and_goes_on(self) -> bool:
        return not self._held and self._goes_on()

    def _goes_on(self) -> bool:
        self._check()
        return not self.failed

    def _copy(self) -> None:
        """Have the device copy what was read until there is no more; in the copier."""
        with contextlib.ExitStack() as stack:
            self._enter_device(stack)
            while True:
                while self._in_flight and self._is_wanted_soon():
                    self._free_oldest()
                filled = self._filled.get()
                if filled is None:
                    break
                self._send(*filled)
            self._give_back_in_flight()

    def _is_wanted_soon(self) -> bool:
        """Whether a reader waits for what is in flight, while nothing else is to be done."""
        return self._filled.empty() and self._free.empty()

    def _free_oldest(self) -> None:
        """Wait until the device has read the oldest buffer, and hand that to the next reader."""
        used = self._in_flight.popleft()
        try:
            if used.after is not None:
                used.after.wait()
                used = _Used(used.buffer, None)
        except BaseException as error:  # noqa: BLE001  # drain raises it
            self.fail(error)
        if self._held > 1 and self._ring.is_wanted:  # others get on, and this does with less
            self._give_back(used)
        else:
            self._free.put(used)

    def _send(self, job: CopyJob, buffer: PinnedBuffer) -> None:
        """Have the device copy one job."""
        mark = None
        try:
            if not self.failed:
                mark = self._last = self._enqueue(job, buffer)
        except BaseException as error:  # noqa: BLE001  # drain raises it
            self.fail(error)
        self._in_flight.append(_Used(buffer, mark))
        while self._in_flight and self._in_flight[0].is_free():
            self._free_oldest()
        with self._changed:
            is_last = self._pending == 1
        if is_last:  # nobody is to wait for a buffer while this waits for a job
            self._give_back_free()
            self._give_back_in_flight()
        self._over()

    def _enqueue(self, job: CopyJob, buffer: PinnedBuffer) -> Mark:
        if self._stream is None:
            self._stream = self._accelerator.new_stream()
        if job.staging is None:
            uploads = [Upload(part.target, part.position, part.nbytes) for part in job.parts]
            return self._stream.enqueue(DeviceWork(job.after, buffer, uploads))
        upload = Upload(job.staging[: job.used], 0, job.used)
        copies = [(part.target, part.of(job.staging)) for part in job.parts]
        return self._stream.enqueue(DeviceWork(job.after, buffer, [upload], copies))


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="craftcache-device", daemon=True)
    thread.start()
    return thread


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
