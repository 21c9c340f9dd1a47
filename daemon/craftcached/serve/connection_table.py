"""Which workers are connected: how many of whom, and who makes way for the next.

A connection is *idle* while its worker waits for nothing: it has said nothing yet, or has its
answer. An idle connection is nobody's use of the daemon, so the longest idle one is given up where
another worker wants its place; the client library opens a new one for its next request.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .connection import User

if TYPE_CHECKING:
    from .connection import WorkerConnection

__all__ = ["ConnectionTable", "Limits", "WorkerStatistics"]

GREETING_SECONDS = 5.0
"""Time that a worker has between connecting and its first words: on a crowded machine it may not
run for as long as that. To it a connection that ends before its request is one that failed."""


def _share_of_descriptors(share: int) -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft // share


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What workers can use up at most.

    Attributes:
        connections: Connections of all users together.
        connections_per_uid: Connections of one user; three quarters of all by default, so that
            one user's workers leave room for another's.
        extra: Connections beyond these limits that are accepted all the same, for one request that
            needs no work: a hit, or the daemon's status.
        unread_per_uid: Descriptors sent to one user's workers and not received yet. The kernel
            allows the daemon as many in all as it may have files open.
        requests: Requests worked on at once, of all users. One user may have as many as there are
            left, so that there are always some left for the next. A hit is answered beyond that
            too, and who follows a watch only waits.
        idle_seconds: Time after which an idle connection is closed even if none waits for its
            place.
        send_seconds: Time after which a connection is closed whose worker reads nothing, so that
            an answer does not fit into its socket buffer.
        heartbeat_seconds: Time between two messages that a request is still worked on.
    """

    connections: int = field(default_factory=lambda: _share_of_descriptors(2))
    connections_per_uid: int = field(default_factory=lambda: _share_of_descriptors(2) * 3 // 4)
    extra: int = 32
    unread_per_uid: int = field(default_factory=lambda: _share_of_descriptors(4))
    requests: int = 4096
    idle_seconds: float = 300.0
    send_seconds: float = 10.0
    heartbeat_seconds: float = 4.0


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """Numbers of the server's connections and requests at one moment.

    Attributes:
        connections: Connected workers, idle ones and those that linger included.
        requests: Requests that are being worked on.
        followers: Requests that wait for a watch's next generation.
    """

    connections: int
    requests: int
    followers: int = 0


class ConnectionTable:
    """The open connections, by user; state changes in steps without an await, so has no lock.

    Args:
        limits: Numbers of connections allowed.

    Attributes:
        users: The connected users, by uid.
        count: Connections of all users, those included that end once their answer is received.
        extra: Connections beyond the limits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.users: dict[int, User] = {}
        self.count = 0
        self.extra = 0

    def user(self, uid: int) -> User:
        """The connections and requests of one uid."""
        return self.users.setdefault(uid, User())

    def add(self, connection: WorkerConnection) -> None:
        """Count a connection."""
        connection.user.connections.add(connection)
        self.count += 1

    def remove(self, connection: WorkerConnection) -> None:
        """Count it no longer, nor the descriptors that its worker never received."""
        user = connection.user
        user.connections.discard(connection)
        user.idle.pop(connection, None)
        user.unread -= connection.unread
        if not user.connections:
            del self.users[connection.peer.uid]
        self.count -= 1
        self.extra -= connection.is_extra

    def add_extra(self, connection: WorkerConnection) -> bool:
        """Have a connection beyond the limits heard for one request; False where none may be."""
        if self.extra >= self._limits.extra:
            return False
        connection.is_extra = True
        self.extra += 1
        return True

    def is_crowded(self, user: User) -> bool:
        """Whether a user, or all together, have more connections than they may."""
        return self._has_too_many(user) or self._standing() > self._limits.connections

    def longest_idle(self, user: User, now: float) -> WorkerConnection | None:
        """The idle connection whose place a newcomer of ``user`` takes; None where all are busy.

        If the user has too many it is one of their own, else one of the user with most idle. A
        connection whose worker has not received its answer yet, or has only just connected and is
        about to ask, is not given up.

        Args:
            user: The newcomer's user.
            now: Time by the loop's clock.
        """
        if not self._has_too_many(user):
            user = max(self.users.values(), key=lambda each: len(each.idle))
        waiting_for_nothing = (
            each
            for each, since in user.idle.items()
            if (each.greeted or since <= now - GREETING_SECONDS)
            and each.has_received()
            and not each.has_unheard()
        )
        return next(waiting_for_nothing, None)

    def idle_since(self, moment: float) -> list[WorkerConnection]:
        """All connections that have been idle since before ``moment`` of the loop's clock."""
        return [
            connection
            for user in self.users.values()
            for connection, since in user.idle.items()
            if since < moment
        ]

    def all(self) -> list[WorkerConnection]:
        """All connections."""
        return [each for user in self.users.values() for each in user.connections]

    def _has_too_many(self, user: User) -> bool:
        return len(user.connections) > self._limits.connections_per_uid

    def _standing(self) -> int:
        return self.count - self.extra
