"""Listening sockets that were open before this process was: sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from craftcache.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["InheritedSockets"]

FIRST_DESCRIPTOR = 3


@dataclass(frozen=True, slots=True)
class InheritedSockets:
    """What the service manager listens on for the daemon; it keeps the sockets and their paths.

    Attributes:
        worker: The socket of type SOCK_SEQPACKET, or None.
        admin: The socket of type SOCK_STREAM, or None.
    """

    worker: socket.socket | None = None
    admin: socket.socket | None = None

    @classmethod
    def take(cls, environment: Mapping[str, str]) -> Self:
        """Those that ``environment`` announces to this process; call it once.

        They are told apart by their type, because all sockets of one unit have the same name.

        Raises:
            ConfigError: One of them is not of the two, or there are two of one type.
        """
        if environment.get("LISTEN_PID") != str(os.getpid()):
            return cls()
        found: dict[socket.SocketKind, socket.socket] = {}
        for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + _count(environment)):
            os.set_inheritable(descriptor, False)
            inherited = socket.socket(fileno=descriptor)
            kind = inherited.type
            if not _is_ours(inherited) or kind in found:
                raise ConfigError(
                    f"descriptor {descriptor} is no socket that the daemon serves",
                    hint="The socket unit has one ListenStream= and one ListenSequentialPacket=, "
                    "both paths, and Accept=no",
                )
            found[kind] = inherited
        return cls(worker=found.get(socket.SOCK_SEQPACKET), admin=found.get(socket.SOCK_STREAM))


def _count(environment: Mapping[str, str]) -> int:
    try:
        return int(environment.get("LISTEN_FDS", "0"))
    except ValueError:
        return 0


def _is_ours(inherited: socket.socket) -> bool:
    return (
        inherited.family == socket.AF_UNIX
        and inherited.type in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)
        and bool(inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )
