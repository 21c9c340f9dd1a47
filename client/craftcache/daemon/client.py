"""The client of the node's daemon that loaders use: takes a request, returns its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from craftcache.errors import AccessDenied, NotFound, ProtocolMismatch, ResourceLimit
from craftcache.plan import NO_SOCKETS
from craftcache.sources import HubSource

from .transport import DaemonUnavailable, WorkerSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from craftcache.wire import Request

    from .transport import Call

__all__ = ["DaemonClient", "own_token"]

AnswerT = TypeVar("AnswerT")


class DaemonClient:
    """The daemon of this node; thread-safe, fork-safe.

    Args:
        socket_dir: Directory of its sockets; None on a machine without a daemon.
        patience: Called after a second without a message; returns how many seconds in all to wait
            for the first answer to a request.
        name: Path of the socket in that directory.
    """

    def __init__(
        self,
        socket_dir: Path | None,
        patience: Callable[[Request[Any]], float],
        *,
        name: str = "worker/handles.sock",
    ) -> None:
        self._socket = WorkerSocket(socket_dir / name) if socket_dir else None
        self._patience = patience

    def close(self) -> None:
        """Close idle connections; the next call opens new ones."""
        if self._socket is not None:
            self._socket.close()

    def handle(self, request: Request[AnswerT], call: Call) -> AnswerT:
        """Ask the daemon.

        Raises:
            DaemonUnavailable: It is absent, refuses, goes silent, speaks another protocol, fails by
                its own fault, or may not read what this process may.
            CraftcacheError: The error that the daemon answers with.
        """
        if self._socket is None:
            raise DaemonUnavailable(NO_SOCKETS)
        try:
            return self._socket.ask(request, call, patience=lambda: self._patience(request))
        except DaemonUnavailable as failure:
            at = self._socket.path
            why = f"the daemon at {at} failed: {failure}"
            raise DaemonUnavailable(why, kind=failure.kind) from failure
        except ProtocolMismatch as mismatch:
            raise DaemonUnavailable(str(mismatch), kind="protocol") from mismatch
        except ResourceLimit as error:
            about = request.about
            raise (error if about is None else error.about(about.shown)) from error.__cause__
        except (AccessDenied, NotFound) as error:
            # This process's own token may allow what the daemon's token does not.
            if isinstance(request.about, HubSource) and own_token() is not None:
                why = f"the daemon may not read it: {error}"
                raise DaemonUnavailable(why, error, kind="denied") from error
            raise

    def fell_back(self, away: DaemonUnavailable, served_by: str) -> None:
        """Have the daemon told, when it is there again, that a load went another way."""
        if self._socket is not None:
            self._socket.fell_back(away.kind, served_by)


def own_token() -> str | None:
    """The Hub token of this process's user, as huggingface_hub finds it."""
    from craftcache.network.token import find_token

    return find_token()
