"""States told to the service manager: sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Notifier"]

log = logging.getLogger("craftcached")


class Notifier:
    """Tells the service manager the daemon's state; does nothing where there is none.

    Args:
        address: Address of the manager's datagram socket; empty where there is none.
        watchdog_seconds: Time without a sign of life after which the manager kills and restarts
            the daemon; None where it has no watchdog.
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds
        self._status = ""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """What ``environment`` says to this process."""
        return cls(environment.get("NOTIFY_SOCKET", ""), _watchdog_seconds(environment))

    @property
    def is_heard(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._address)

    def ready(self) -> None:
        """Requests are answered, by the settings in force."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The settings are being read again; ``ready`` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """No new requests are taken."""
        self._send("STOPPING=1")

    def alive(self, status: str) -> None:
        """A sign of life, and what the daemon is doing in one line for people."""
        told = "WATCHDOG=1"
        if status != self._status:
            self._status = status
            told += f"\nSTATUS={status}"
        self._send(told)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                manager.sendto(state.encode(), self._address)
        except OSError as error:
            log.warning("the service manager cannot be told %s: %s", state.split("\n")[0], error)


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if is_ours and microseconds.isdigit() else None
