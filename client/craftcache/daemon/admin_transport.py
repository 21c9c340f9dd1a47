"""Requests of the daemon's HTTP interface over its Unix socket, and answers as checked fields."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError, Unavailable, from_problem
from craftcache.wire.fields import Fields

from .events import connection_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import httpx

__all__ = ["AdminTransport", "STEP_SECONDS"]

SOCKET_NAME = "craftcache.sock"

NDJSON = "application/x-ndjson"

CONNECT_SECONDS = 5.0

ANSWER_SECONDS = 60.0
"""Timeout of requests that at most unlink files of many gigabytes."""

STEP_SECONDS = 1800.0
"""Timeout between two signs of life of a verification: a file may be fetched anew in between."""


class AdminTransport:
    """Sends requests over ``<socket_dir>/craftcache.sock``; opens one connection a request.

    Args:
        socket_dir: Directory of the daemon's sockets; None on a machine without a daemon.
    """

    def __init__(self, socket_dir: Path | None) -> None:
        self._socket_dir = socket_dir

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content: Iterable[bytes] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Fields:
        """Send a request; returns its answer.

        Args:
            method: HTTP's method.
            path: Path, with its query.
            body: Sent as JSON; None for none.
            content: Sent as it is, in place of ``body``.
            seconds: Timeout of each wait.

        Raises:
            Unavailable: The daemon cannot be reached.
            CraftcacheError: What the daemon refused, or that its answer cannot be understood.
        """
        with self._client(seconds) as client:
            return _answer(client.request(method, path, json=body, content=content))

    def events(self, method: str, path: str, body: object) -> Iterator[Fields]:
        """The events of an answer that comes line by line; see request."""
        accept = {"Accept": NDJSON}
        with (
            self._client(STEP_SECONDS) as client,
            client.stream(method, path, json=body, headers=accept) as response,
        ):
            if not response.is_success:
                response.read()
                _answer(response)
            for line in response.iter_lines():
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise _malformed("a line of it is no JSON") from error
                yield Fields(event, _malformed)

    @contextlib.contextmanager
    def _client(self, seconds: float) -> Iterator[httpx.Client]:
        """A connection to the daemon, for one request; ``seconds`` is the timeout of each wait."""
        import httpx

        socket = self.socket
        try:
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=str(socket)),
                timeout=httpx.Timeout(seconds, connect=CONNECT_SECONDS),
                base_url="http://craftcached",
            ) as client:
                yield client
        except httpx.TransportError as error:
            raise connection_error(error, socket) from error

    @property
    def socket(self) -> Path:
        """Path of the socket.

        Raises:
            Unavailable: This machine has none.
        """
        if self._socket_dir is None:
            raise Unavailable(
                "this machine has no socket directory of a daemon",
                hint="Start craftcached, or name its directory by --socket-dir or "
                "CRAFTCACHE_SOCKET_DIR",
            )
        return self._socket_dir / SOCKET_NAME


def _answer(response: httpx.Response) -> Fields:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unavailable(
            f"the daemon answers {response.status_code} without JSON",
            hint="Is something else listening on its socket?",
        )
    if response.is_success:
        return Fields(answer, _malformed)
    if "code" in answer:
        raise from_problem(answer)
    raise CraftcacheError(
        f"the daemon answers {response.status_code} {answer.get('title', '')}".rstrip(),
        hint="Are craftcache and craftcached of the same release?",
    )


def _malformed(why: str) -> CraftcacheError:
    return CraftcacheError(
        f"the daemon's answer cannot be understood: {why}",
        hint="Are craftcache and craftcached of the same release?",
    )
