"""What the worker socket asks of the rest of the daemon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from craftcache.wire import (
        Follow,
        Generation,
        Identified,
        Identify,
        Load,
        Loaded,
        Model,
        Models,
        Progress,
        Resolve,
        Resolved,
        StatusReport,
        Warm,
        Warmed,
    )

    from .peers import Peer

__all__ = ["Opened", "WorkerBackend"]


class Opened:
    """The answer to a load: a message and the open files it speaks of, which it owns.

    They are closed with it at the latest, so that no answer that is given up on the way, by a
    cancellation for instance, leaves any behind.

    Args:
        loaded: The message.
        descriptors: Of each file in order its blob, then, where it has one, its index; open for
            reading only, and opened for this answer alone, because whoever shares an open file
            shares its offset.
    """

    __slots__ = ("descriptors", "loaded")

    def __init__(self, loaded: Loaded, descriptors: Iterable[int]) -> None:
        self.loaded = loaded
        self.descriptors = tuple(descriptors)

    def close(self) -> None:
        """Close the files; what was sent stays open where it arrived."""
        descriptors, self.descriptors = self.descriptors, ()
        for descriptor in descriptors:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class WorkerBackend(Protocol):
    """Grants what workers ask for.

    Every method may raise an error of the tree, which becomes the answer; anything else is
    logged and answered as the daemon's own fault. Sources arrive as text of bounded length, not
    yet parsed; filenames are checked. A call is cancelled when its client goes away; what others
    wait for as well must survive that. ``caller`` is the process that connected; another may have
    the connection from it since. ``report`` tells the client how far its request has come;
    it is called on the event loop, never blocks and may be called as often as is convenient.
    """

    def load_nowait(self, request: Load, caller: Peer) -> Opened | None:
        """The files of a source that is at hand, or None where something has to be waited for."""
        ...

    async def load(self, request: Load, caller: Peer, report: Callable[[Progress], None]) -> Opened:
        """The files of a source, fetched first where need be."""
        ...

    async def resolve(
        self, request: Resolve, caller: Peer, report: Callable[[Progress], None]
    ) -> Resolved:
        """Where a file of a source is, fetched first where need be."""
        ...

    async def warm(self, request: Warm, caller: Peer, report: Callable[[Progress], None]) -> Warmed:
        """Bring every source up to date; one that fails has its error in the answer."""
        ...

    async def status(self, caller: Peer) -> StatusReport:
        """How the daemon is."""
        ...

    async def models(self, request: Models, caller: Peer) -> Iterable[Model]:
        """The models whose source sorts after ``request.after``, in that order."""
        ...

    async def identify(self, request: Identify, caller: Peer) -> Identified:
        """Which watch a directory belongs to, if any."""
        ...

    async def follow(self, request: Follow, caller: Peer) -> Generation:
        """The generation that is served, as soon as it is another than ``request.after``."""
        ...
