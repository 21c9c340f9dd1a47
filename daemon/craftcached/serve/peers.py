"""The process at the other end of a Unix socket, as the kernel reports it, and its rights."""

from __future__ import annotations

import grp
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.errors import PolicyDenied

if TYPE_CHECKING:
    import asyncio

__all__ = ["Peer", "Administrators", "peer_of"]

_UCRED = struct.Struct("iII")
_SO_PEERGROUPS = 59
_GROUPS_BYTES = 1024
"""The most that Python's getsockopt takes: 256 groups."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A connected process at the time it connected.

    Attributes:
        pid: Process id, in this process's PID namespace.
        uid: User id.
        groups: Ids of its primary and supplementary groups.
    """

    pid: int
    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Ask the kernel about a connected Unix socket."""
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, gid = _UCRED.unpack(raw)
        try:
            packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
        except OSError:  # in more groups than fit: the primary one alone counts
            packed = b""
        groups = struct.unpack(f"{len(packed) // 4}I", packed)
        return cls(pid, uid, frozenset((gid, *groups)))


class Administrators:
    """Root, the daemon's own user and the members of one group.

    Args:
        group: The group's name; empty for none. One that does not exist has no members.
    """

    def __init__(self, group: str) -> None:
        self.group = group

    @property
    def group(self) -> str:
        """The group's name. Setting it looks the group up, once; allowed at any time."""
        return self._group

    @group.setter
    def group(self, name: str) -> None:
        self._group = name
        self._gid = _gid(name)

    def check(self, peer: Peer, what: str, *, source: str | None = None) -> None:
        """Raise PolicyDenied unless ``peer`` may do ``what``."""
        if peer.uid in (0, os.geteuid()) or self._gid in peer.groups:
            return
        if self.group:
            hint = f"Ask root or a member of {self.group}, the setting admin_group"
        else:
            hint = "Ask root, who can name a group of administrators in the setting admin_group"
        raise PolicyDenied(
            f"uid {peer.uid} is no administrator, so {what} is refused", source=source, hint=hint
        )


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        return None


def peer_of(transport: asyncio.BaseTransport | None) -> Peer:
    """The process at the other end of a request's connection.

    Raises:
        PolicyDenied: The connection is gone.
    """
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is None:
        raise PolicyDenied("the connection is closed", hint="Try again")
    # asyncio hands out a wrapper that lacks the options of Unix sockets.
    with socket.socket(fileno=os.dup(connection.fileno())) as own:
        return Peer.of(own)
