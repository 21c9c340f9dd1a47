"""A pattern of directories: whichever of them there are, each is watched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.errors import InvalidSource

from .inotify import WatchedPlace
from .snapshot import MAX_DIRECTORIES, expand

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from craftcache.watch_rule import WatchRule

    from .inotify import InotifyObserver
    from .snapshot import Target

__all__ = ["PatternWatcher"]

log = logging.getLogger("craftcached")

PAUSE_SECONDS = 0.1
"""Least time between two searches."""

REVIEW_SECONDS = 30.0
"""Most time between two searches."""

POLL_SECONDS = 5.0
"""Most time between two searches without reliable hints."""

_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.-]+")


class PatternWatcher:
    """Finds the directories that a rule stands for, for as long as ``run`` runs.

    Args:
        rule: Rule whose directory is a pattern.
        observer: Gives hints of new directories.
        found: Called with each directory's own rule and the directory, once for each.
        threads: For searching.

    Attributes:
        searched: Set when all directories are known that were there at the start.
    """

    def __init__(
        self,
        rule: WatchRule,
        *,
        observer: InotifyObserver,
        found: Callable[[WatchRule, Target], None],
        threads: Executor,
    ) -> None:
        self._rule = rule
        self._found = found
        self._threads = threads
        self.searched = asyncio.Event()
        self._known: set[str] = set()
        self._has_warned = False
        self._hinted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._attention = observer.attention(self._hint)

    async def run(self) -> None:
        """Search until cancelled."""
        try:
            while True:
                self._hinted.clear()
                found = await self._loop.run_in_executor(self._threads, self._search)
                for suffix, target in found:
                    if target.path not in self._known:
                        self._known.add(target.path)
                        self._watch(suffix, target)
                self.searched.set()
                await asyncio.sleep(PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval()):
                        await self._hinted.wait()
        finally:
            self._attention.close()

    def _interval(self) -> float:
        is_blind = self._rule.poll or self._attention.blind_spot is not None
        return POLL_SECONDS if is_blind else REVIEW_SECONDS

    def _hint(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._hinted.set)

    def _search(self) -> list[tuple[str, Target]]:
        found, parents = expand(self._rule)
        places = [WatchedPlace.nearest(parents[0]), *map(WatchedPlace.at, parents)]
        if self._attention.listen_to(place for place in places if place is not None):
            found, _ = expand(self._rule)
        if len(found) >= MAX_DIRECTORIES and not self._has_warned:
            self._has_warned = True
            log.warning("%s: only %d are watched", self._rule.directory, MAX_DIRECTORIES)
        return found

    def _watch(self, suffix: str, target: Target) -> None:
        name = f"{self._rule.name}-{_UNNAMEABLE.sub('_', suffix)}".rstrip(".-")
        try:
            rule = replace(self._rule, name=name, directory=target.path)
        except InvalidSource as error:
            log.warning("%s is not watched: %s", target.path, error.message)
            return
        self._found(rule, target)
