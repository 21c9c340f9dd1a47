"""Hints that something may have changed, as the kernel's inotify gives them.

A hint says "look again" and nothing else, so none has to be believed, and losing some costs time
only. watchdog's observer runs two threads for each directory; its reader of one inotify instance,
which is what is used here, runs one for all.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyFD,
    Mask,
)

from .mounts import file_system_type, is_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from watchdog.observers.inotify_c import InotifyEvent, WatchDescriptor

__all__ = ["WatchedPlace", "InotifyObserver", "Attention"]

log = logging.getLogger("craftcached")

_NAMES = (
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
)
_WRITES = InotifyConstants.IN_MODIFY | InotifyConstants.IN_ATTRIB | InotifyConstants.IN_CLOSE_WRITE
# The kernel has one mask for each directory; each listener takes the events that it needs.
_MASK = Mask(_NAMES | _WRITES | InotifyConstants.IN_ONLYDIR)

_LIMITS = {
    errno.ENOSPC: "fs.inotify.max_user_watches",
    errno.EMFILE: "fs.inotify.max_user_instances",
}

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class WatchedPlace:
    """A directory whose changes are listened to.

    Attributes:
        path: Path of the directory.
        inode: Inode number of the directory: another one at that path is another place.
        name: The only name in it that matters; None where all do.
        names_only: Whether only the names in it matter, not what is written to its files.
    """

    path: str
    inode: int
    name: str | None = None
    names_only: bool = False

    @classmethod
    def at(cls, path: str, name: str | None = None) -> WatchedPlace | None:
        """The place at ``path`` as it is now, for the names in it, or for one; None if none is."""
        try:
            return cls(path, os.stat(path).st_ino, name, names_only=True)
        except OSError:
            return None

    @classmethod
    def nearest(cls, path: str) -> WatchedPlace | None:
        """The place where ``path`` would appear or vanish: its nearest parent that exists."""
        while True:
            parent, name = os.path.split(path)
            if parent == path:
                return None
            if place := cls.at(parent, name):
                return place
            path = parent


class InotifyObserver:
    """All hints of one daemon; a context manager. Thread-safe."""

    def __init__(self) -> None:
        self._inotify: InotifyFD | None = None
        self._limit: OSError | None = None

    def __enter__(self) -> Self:
        try:
            self._inotify = InotifyFD()
        except OSError as error:
            self._limit = error
        else:
            self._inotify.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.stop()
            self._inotify.join()

    def attention(self, hint: Callable[[], None]) -> Attention:
        """A new Attention for one listener, whose ``hint`` is called from another thread."""
        return Attention(self._inotify, self._limit, hint)


class Attention:
    """The places whose changes one listener is told of.

    Args:
        inotify: The shared reader of inotify events; None if it could not be opened.
        limit: The error of opening it; None if it is open.
        hint: Called, from another thread, whenever something may have changed.
    """

    def __init__(
        self, inotify: InotifyFD | None, limit: OSError | None, hint: Callable[[], None]
    ) -> None:
        self._inotify = inotify
        self._limit = limit
        self._hint = hint
        self._listeners: dict[WatchedPlace, _Listener] = {}
        self._blind_spot: str | None = None

    def listen_to(self, places: Iterable[WatchedPlace]) -> bool:
        """Listen to these places only from now on; returns whether there are new ones.

        Changes before that may be missed, so a caller that adds places looks at them again.
        """
        wanted = frozenset(places)
        deaf = {place for place, listener in self._listeners.items() if listener.is_deaf}
        for place in (
            self._listeners.keys() - wanted
        ) | deaf:  # the number of a deaf one was reused
            self._forget(place)
        new = wanted - self._listeners.keys()
        self._blind_spot = None
        for place in new:
            self._blind_spot = self._listen(place) or self._blind_spot
        return bool(new & self._listeners.keys())

    @property
    def blind_spot(self) -> str | None:
        """Reason why changes may be missed, so that the listener has to poll; or None."""
        return self._blind_spot

    def close(self) -> None:
        """Stop listening."""
        for place in tuple(self._listeners):
            self._forget(place)

    def _listen(self, place: WatchedPlace) -> str | None:
        if self._inotify is None:
            return _limit_reached(self._limit)
        listener = _Listener(self._hint, place)
        try:
            kind = file_system_type(place.path)
            listener.descriptor = self._inotify.add_callback(
                os.fsencode(place.path), _MASK, listener, listener.number
            )
        except FileNotFoundError:
            return None  # it has just gone, and the next look will say so
        except OSError as error:
            return _limit_reached(error)
        self._listeners[place] = listener
        return f"{kind} does not tell of other machines' changes" if is_network(kind) else None

    def _forget(self, place: WatchedPlace) -> None:
        listener = self._listeners.pop(place)
        if self._inotify is not None and not listener.is_deaf:
            self._inotify.remove_callbacks([(listener.descriptor, listener.number)])


class _Listener:
    """One directory's events; its methods are called by watchdog, in its thread."""

    def __init__(self, hint: Callable[[], None], place: WatchedPlace) -> None:
        self.number = CallbackId(next(_numbers))
        self.descriptor: WatchDescriptor
        self.is_deaf = False
        self._hint = hint
        self._mask = _NAMES if place.names_only else _NAMES | _WRITES
        self._name = None if place.name is None else os.fsencode(place.name)

    def on_event(self, event: InotifyEvent) -> None:
        if event.mask & self._mask and (self._name is None or event.name in (b"", self._name)):
            self._hint()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:  # noqa: ARG002  # watchdog's signature
        self.is_deaf = True
        self._hint()

    def on_queue_overflow(self) -> None:
        self._hint()


def _limit_reached(error: OSError | None) -> str:
    number = error.errno if error is not None else None
    setting = _LIMITS.get(number or 0)
    if setting is None:
        return f"inotify fails ({error.strerror if error else 'unknown'})"
    return f"inotify's limit {setting} is exhausted; raise it with sysctl"
