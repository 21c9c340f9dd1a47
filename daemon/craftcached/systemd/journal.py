"""The journal: lines as it reads them from a service's stderr, and records with fields.

Records with fields go by its native protocol: one datagram each, with one field a line; see
https://systemd.io/JOURNAL_NATIVE_PROTOCOL. What is too large for a datagram is passed as a sealed
memory file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["JournalFormatter", "JournalSocket", "encode_record", "is_journal"]

_PRIORITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
"""syslog's severities, by the level from which on they apply."""

DEBUG_PRIORITY = 7

ADDRESS: Final = "/run/systemd/journal/socket"

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class JournalFormatter(logging.Formatter):
    """Marks every line with its priority, those of a traceback too: see sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        """``record`` as one or more lines."""
        mark = f"<{_priority(record.levelno)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class JournalSocket:
    """Sends records to the journal; a context manager. Used by the log's one thread.

    Args:
        address: Path of the journal's socket.
    """

    def __init__(self, address: str = ADDRESS) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, record: bytes) -> None:
        """Send one record.

        Raises:
            OSError: The journal does not take it; it may be restarting.
        """
        try:
            self._socket.sendto(record, self._address)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_file(record)

    def _send_file(self, record: bytes) -> None:
        descriptor = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with contextlib.closing(os.fdopen(descriptor, "wb", buffering=0)) as file:
            view = memoryview(record)
            while view:
                view = view[file.write(view) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
            # Not send_fds, which leaves the address out.
            self._socket.sendmsg([b""], [rights], 0, self._address)


def encode_record(record: logging.LogRecord, message: str) -> bytes:
    """A log record in the journal's native form.

    Args:
        record: Its level, its logger and, where it has them, its fields ``journal``.
        message: Its text.
    """
    fields: dict[str, str] = {
        "MESSAGE": message,
        "PRIORITY": str(_priority(record.levelno)),
        "SYSLOG_IDENTIFIER": "craftcached",
        "LOGGER": record.name,
    }
    return _encoded(fields | getattr(record, "journal", {}))


def _encoded(fields: Mapping[str, str]) -> bytes:
    encoded = bytearray()
    for name, text in fields.items():
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            length = struct.pack("<Q", len(value))
            encoded += name.encode() + b"\n" + length + value + b"\n"
        else:
            encoded += name.encode() + b"=" + value + b"\n"
    return bytes(encoded)


def is_journal(descriptor: int, environment: Mapping[str, str]) -> bool:
    """Whether ``descriptor`` is still the journal's stream, and not redirected elsewhere since."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _priority(level: int) -> int:
    return next((number for start, number in _PRIORITIES if level >= start), DEBUG_PRIORITY)
