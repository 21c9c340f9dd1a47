"""Standard error without waiting for whoever reads it.

Nobody may read the daemon's log for a while: a container's log driver that is stuck, a stopped
terminal. The pipe fills, and a write to it waits for ever; in the event loop that would be the
end of the daemon. So a thread of its own writes, from a queue with a bound. What does not fit is
dropped and counted, and the number is written as soon as there is room again.

Where the log is systemd's journal, records go there with their fields, by the same thread; what the
journal does not take is written as text.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from .systemd import encode_record

if TYPE_CHECKING:
    from types import TracebackType

    from .systemd import JournalSocket

__all__ = ["LogWriter"]

_QUEUE_BYTES: Final = 1 << 20
"""Waiting to be written, at most: some thousands of lines."""

_CLOSE_SECONDS: Final = 1.0
"""How long the end of the daemon waits for its last lines to be read."""


class LogWriter(logging.Handler):
    """Writes log records to a descriptor, from a thread; a context manager.

    While it is entered, ``sys.stderr`` goes the same way: warnings, tracebacks of threads and
    what libraries print. Leaving waits for a second until all is written.

    Args:
        descriptor: To write to.
        journal: Takes records with their fields instead; None where the log is no journal.
        queue_bytes: Bytes that may wait to be written.
        close_seconds: Time that leaving waits for the queue to be written.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        journal: JournalSocket | None = None,
        queue_bytes: int = _QUEUE_BYTES,
        close_seconds: float = _CLOSE_SECONDS,
    ) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._journal = journal
        self._room = queue_bytes
        self._close_seconds = close_seconds
        # Guards _room and what follows. Not held during a write; no other lock is taken inside.
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[_Entry] = deque()
        self._dropped = 0
        self._closing = False
        self._written = threading.Event()
        self._stderr = sys.stderr

    def __enter__(self) -> Self:
        # A daemon thread, since it may be in a write that never ends.
        threading.Thread(target=self._write, name="log", daemon=True).start()
        self._stderr, sys.stderr = sys.stderr, _Stream(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._written.wait(self._close_seconds)
        sys.stderr = self._stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line, or lines, of a record; never waits."""
        try:
            text = self.format(record)
            native = encode_record(record, _FOR_JOURNAL.format(record)) if self._journal else b""
        except Exception:  # noqa: BLE001  # as logging's own handlers do
            self.handleError(record)
            return
        self._put(_Entry(_encoded(f"{text}\n"), native))

    def put(self, text: str) -> None:
        """Queue ``text``; never waits."""
        self._put(_Entry(_encoded(text)))

    def _put(self, entry: _Entry) -> None:
        with self._changed:
            if self._closing or entry.size > self._room:
                self._dropped += 1
                return
            self._room -= entry.size
            self._queue.append(entry)
            self._changed.notify()

    def _write(self) -> None:
        while (entry := self._next()) is not None:
            # A pipe whose reader has gone is like one that nobody reads.
            with contextlib.suppress(OSError):
                if not self._is_sent(entry):
                    _write_all(self._descriptor, entry.text)
            with self._changed:
                self._room += entry.size
        self._written.set()

    def _is_sent(self, entry: _Entry) -> bool:
        """Whether the journal has taken it, with its fields."""
        if self._journal is None or not entry.native:
            return False
        try:
            self._journal.send(entry.native)
        except OSError:
            return False
        return True

    def _next(self) -> _Entry | None:
        """The next line to write; None at the end."""
        with self._changed:
            while not self._queue and not self._dropped:
                if self._closing:
                    return None
                self._changed.wait()
            if self._queue:
                return self._queue.popleft()
            dropped, self._dropped = self._dropped, 0
            line = f"{dropped} log lines were dropped: nobody read standard error\n".encode()
            self._room -= len(line)
            return _Entry(line)


class _Entry(NamedTuple):
    """A line that waits to be written, and its form for the journal where it has fields."""

    text: bytes
    native: bytes = b""

    @property
    def size(self) -> int:
        return len(self.text) + len(self.native)


_FOR_JOURNAL: Final = logging.Formatter("%(message)s")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


class _Stream(io.TextIOBase):
    """``sys.stderr`` of a process whose log has a writer."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a constant here
        """As it is written."""
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]  # a constant here
        """What becomes of characters that it has not."""
        return "backslashreplace"

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Queue ``text``."""
        self._writer.put(text)
        return len(text)


def _write_all(descriptor: int, line: bytes) -> None:
    view = memoryview(line)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # another process has made its end, and so this one, not blocking
            select.select([], [descriptor], [])
