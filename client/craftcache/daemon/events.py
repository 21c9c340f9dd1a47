"""The daemon's events, as its HTTP interface streams them: what happened, and in which order."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from craftcache.errors import CraftcacheError, PolicyDenied, Unavailable, from_problem
from craftcache.wire.fields import Fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    import httpx

__all__ = ["DaemonEvent", "EventStream", "connection_error", "eviction_words"]

CONNECT_SECONDS = 5.0

FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 5.0
"""Bounds of the pause between two attempts to reach a daemon that went away."""

SEQUENCE_HEADER = "Craftcache-Sequence"

MAX_KIND = 64

_EVICTION_WORDS = {
    "admission": "to make room for a fetch",
    "max_bytes": "to make room, as there was more than max_bytes",
    "asked": "to make room, as an administrator asked",
}


def eviction_words(reason: str) -> str:
    """The ``reason`` of an event ``evicted``, for people: why the model was removed."""
    return _EVICTION_WORDS.get(reason, f"to make room ({reason})")


@dataclass(frozen=True, slots=True)
class DaemonEvent:
    """Something that happened in the daemon.

    Attributes:
        seq: Its number; later events have higher ones, also those of a later daemon.
        kind: What happened, such as ``warmed``; docs/http.md lists all. ``gap`` stands for events
            up to ``seq`` that are lost to this listener.
        at: When, in seconds since the epoch.
        fields: What is said of it, such as its ``source``.
    """

    seq: int
    kind: str
    at: float
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_fields(self) -> dict[str, Any]:
        """The event as the JSON object that it came as."""
        return {"seq": self.seq, "event": self.kind, "at": self.at, **self.fields}

    @classmethod
    def parse(cls, line: str) -> DaemonEvent:
        """The event of one line.

        Raises:
            CraftcacheError: It is none.
        """
        try:
            fields = Fields(json.loads(line), _malformed)
        except ValueError:
            raise _malformed("not JSON") from None
        rest = {k: v for k, v in fields.whole.items() if k not in ("seq", "event", "at")}
        return cls(
            fields.integer("seq"), fields.text("event", MAX_KIND), fields.seconds("at"), rest
        )


class EventStream:
    """Reads events over ``craftcache.sock``; goes on after a restart of the daemon.

    Args:
        socket: Path of the socket.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def read(self, since: int | None) -> Iterator[DaemonEvent]:
        """Yield events as they happen.

        Args:
            since: Number after which to begin; 0 begins with the oldest that the daemon has kept,
                None with what happens from now on.

        Raises:
            PolicyDenied: This user may not connect.
            Unavailable: The daemon cannot be reached, and could not be before.
        """
        import httpx

        was_there, pause = False, FIRST_PAUSE_SECONDS
        while True:
            try:
                transport = httpx.HTTPTransport(uds=str(self._socket))
                with (
                    httpx.Client(transport=transport, timeout=_timeout()) as client,
                    client.stream("GET", _url(since)) as response,
                ):
                    if not response.is_success:
                        response.read()
                    since, was_there, pause = _begun(response), True, FIRST_PAUSE_SECONDS
                    for line in response.iter_lines():
                        event = DaemonEvent.parse(line)
                        since = event.seq
                        yield event
            except httpx.TransportError as error:
                if not was_there:
                    raise connection_error(error, self._socket) from error
            time.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)

    async def aread(self, since: int | None) -> AsyncIterator[DaemonEvent]:
        """See ``read``."""
        import httpx

        was_there, pause = False, FIRST_PAUSE_SECONDS
        while True:
            try:
                transport = httpx.AsyncHTTPTransport(uds=str(self._socket))
                async with (
                    httpx.AsyncClient(transport=transport, timeout=_timeout()) as client,
                    client.stream("GET", _url(since)) as response,
                ):
                    if not response.is_success:
                        await response.aread()
                    since, was_there, pause = _begun(response), True, FIRST_PAUSE_SECONDS
                    async for line in response.aiter_lines():
                        event = DaemonEvent.parse(line)
                        since = event.seq
                        yield event
            except httpx.TransportError as error:
                if not was_there:
                    raise connection_error(error, self._socket) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE_SECONDS)


def _url(since: int | None) -> str:
    query = "" if since is None else f"?since={since}"
    return f"http://craftcached/v1/events{query}"


def _timeout() -> httpx.Timeout:
    import httpx

    return httpx.Timeout(None, connect=CONNECT_SECONDS)


def _begun(response: httpx.Response) -> int | None:
    """Number after which the stream goes on if it breaks before its first event.

    Raises:
        CraftcacheError: The daemon refuses.
    """
    if not response.is_success:
        try:
            problem = response.json()
        except ValueError:
            problem = None
        if isinstance(problem, dict) and "code" in problem:
            raise from_problem(problem)
        raise _malformed(f"status {response.status_code}")
    number = response.headers.get(SEQUENCE_HEADER, "")
    return int(number) if number.isdecimal() else None


def connection_error(error: httpx.TransportError, socket: Path) -> CraftcacheError:
    """The error of a request that did not come to the daemon."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError):
            return PolicyDenied(
                f"this user may not use {socket}", hint="Ask root, or join the socket's group"
            )
        cause = cause.__cause__ or cause.__context__
    return Unavailable(
        f"the daemon cannot be reached at {socket} ({error})",
        hint="Is craftcached running? systemctl status craftcached says so",
    )


def _malformed(why: str) -> CraftcacheError:
    return CraftcacheError(
        f"the daemon's events cannot be understood: {why}",
        hint="Are craftcache and craftcached of the same release?",
    )
