"""All watches of the daemon: their rules, watchers, served generations and waiting workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from craftcache.errors import (
    CraftcacheError,
    InvalidSource,
    NotFound,
    PolicyDenied,
    Unavailable,
)

from .candidate import CandidateMaker
from .generations import Generations, directories_by_watch, numbers_by_watch
from .inotify import InotifyObserver
from .pattern import PatternWatcher
from .publisher import Publisher
from .snapshot import Target, matching
from .watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence

    from craftcache.cache.manifest import Manifest
    from craftcache.sources import WatchSource
    from craftcache.watch_rule import WatchRule
    from craftcached.database import Database
    from craftcached.events import Events
    from craftcached.fetch.disk_space import DiskSpace
    from craftcached.store.store import Store

    from .candidate import CandidateInspector
    from .watcher import Report

__all__ = ["Watches"]

log = logging.getLogger("craftcached")

LOOKING_THREADS = 8

SEARCH_SECONDS = 5.0
"""Timeout of the first search of patterns, before the sockets are opened."""


class Watches:
    """The watches of the settings and those that were added; nothing happens until ``running``.

    All state changes in steps without an await, on the event loop, so there is no lock.

    Args:
        store: The store that generations are published in.
        inspector: Inspects candidates.
        records: The database of added watches, and of those that were rolled back.
        events: The event stream, told of each watch's changes of state.
        rules: Rules of the watches that the settings name.
        space: The ledger of the room that files take which are not published yet; None for none.
    """

    def __init__(
        self,
        *,
        store: Store,
        inspector: CandidateInspector,
        records: Database,
        events: Events,
        rules: Sequence[WatchRule],
        space: DiskSpace | None = None,
    ) -> None:
        self._store = store
        self._records = records
        self._maker = CandidateMaker(store, inspector, space)
        self._publisher = Publisher(store, self._maker, records, events)
        self._configured = {rule.name: rule for rule in rules}
        self._added: dict[str, WatchRule] = {}
        self._generation_numbers_by_watch: dict[str, set[int]] = {}
        self._last_directory_by_watch: dict[str, str] = {}
        self._searching: list[PatternWatcher] = []
        self._watchers: dict[str, Watcher] = {}
        self._tasks: defaultdict[str, list[asyncio.Task[None]]] = defaultdict(list)
        self._watches_by_rule: defaultdict[str, list[str]] = defaultdict(list)
        self._observer = InotifyObserver()
        self._threads = ThreadPoolExecutor(LOOKING_THREADS, thread_name_prefix="watch")

    @contextlib.asynccontextmanager
    async def running(
        self, queue_needs: Callable[[Manifest], Awaitable[object]]
    ) -> AsyncIterator[None]:
        """Watch until the context ends.

        Args:
            queue_needs: Called with each new generation; queues a warm of its dependencies, and
                returns at once.
        """
        await self._publisher.begin(queue_needs)
        await asyncio.to_thread(self._maker.clear)
        self._added = {rule.name: rule for rule in await self._records.watch_rules()}
        manifests = await self._store.manifests()
        self._generation_numbers_by_watch = numbers_by_watch(manifests)
        self._last_directory_by_watch = directories_by_watch(manifests)
        try:
            with self._observer:
                try:
                    for rule in self._rules().values():
                        self._start(rule)
                    with contextlib.suppress(TimeoutError):  # a file system may hang
                        async with asyncio.timeout(SEARCH_SECONDS):
                            await asyncio.gather(
                                *(each.searched.wait() for each in self._searching)
                            )
                    yield
                finally:
                    await asyncio.gather(*map(self._stop, tuple(self._tasks)))
        finally:  # a thread that still looks is waited for, but not by the event loop
            await asyncio.to_thread(self._threads.shutdown)

    def configure(self, rules: Iterable[WatchRule]) -> None:
        """Use these rules of the settings from now on."""
        before = self._rules()
        self._configured = {rule.name: rule for rule in rules}
        after = self._rules()
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name):
                self._spawn("", self._replace(name, after.get(name)))

    async def put(self, rule: WatchRule) -> None:
        """Add a watch, or put it in place of the one of its name; durable when this returns.

        Raises:
            PolicyDenied: The settings have a watch of that name.
        """
        self._check_not_configured(rule.name)
        if self._owner(rule.name) not in (None, rule.name):
            raise InvalidSource(
                "a directory of a pattern is watched under that name",
                source=f"watch:{rule.name}",
                hint="Choose another name",
            )
        if self._added.get(rule.name) == rule:
            return
        await self._records.save_watch_rule(rule)
        self._added[rule.name] = rule
        await self._replace(rule.name, rule)

    async def remove(self, name: str) -> int:
        """Stop watching a directory, or those of a pattern; returns the bytes freed.

        Raises:
            NotFound: There is no such watch.
            PolicyDenied: It stands in the settings, or belongs to a pattern.
        """
        self._check_not_configured(name)
        if name not in self._added:
            owner = self._owner(name)
            if owner is not None:
                raise PolicyDenied(
                    f"it belongs to the pattern {owner}",
                    source=f"watch:{name}",
                    hint=f"craftcache watch rm {owner}",
                )
            raise _no_watch(name)
        await self._records.remove_watch_rule(name)
        del self._added[name]
        owned = [self._watchers[each] for each in self._watches_by_rule[name]]
        await self._stop(name)
        freed = 0
        for watcher in owned:
            await self._publisher.release(watcher)
            freed += await watcher.generations.remove_all()
            self._last_directory_by_watch.pop(watcher.rule.name, None)
        return freed

    def reports(self) -> list[Report]:
        """The state of each watched directory, by name."""
        return [self._watchers[name].report() for name in sorted(self._watchers)]

    def patterns(self) -> list[WatchRule]:
        """The rules that stand for any number of directories, by name."""
        rules = self._rules()
        return [rules[name] for name in sorted(rules) if rules[name].is_pattern]

    def report(self, name: str) -> Report:
        """The state of one watched directory.

        Raises:
            NotFound: There is no such watch.
        """
        return self._watcher(name).report()

    async def roll_back(self, name: str, number: int | None) -> None:
        """Serve an earlier generation until ``resume``; the one before by default.

        Raises:
            NotFound: There is no such watch, or generation.
        """
        await self._publisher.roll_back(self._watcher(name), number)

    async def resume(self, name: str) -> None:
        """Serve the newest generation again, and each new one.

        Raises:
            NotFound: There is no such watch.
        """
        await self._publisher.resume(self._watcher(name))

    async def wait_other(self, name: str, after: int | None) -> Manifest:
        """The served generation, as soon as it is another than ``after``.

        Raises:
            NotFound: There is no such watch, or it was removed.
        """
        while True:
            served = self._watcher(name).generations.served
            if served is not None and served.watched and served.watched.generation != after:
                return served
            await self._publisher.wait_next(name)

    async def find(self, device: int, inode: int) -> str | None:
        """The name of the watch of a directory that has this device and inode now; or None.

        An inode number known from earlier proves little: once a directory is removed, the next new
        one may get it. So the watched directory is looked at now: while it has the number, no
        other has.
        """
        for name, watcher in tuple(self._watchers.items()):
            if watcher.directory == (device, inode) and await watcher.is_at(device, inode):
                return name
        return None

    def take_again(self, source: WatchSource) -> None:
        """Make a generation again of a directory whose newest generation is lost."""
        watcher = self._watchers.get(source.name)
        if watcher is not None and source.generation is None and watcher.take_again():
            log.warning("watch %s: what was served is lost, and is taken again", source.name)

    def is_watched(self, source: WatchSource) -> bool:
        """Whether ``source`` names the served generation of an active watch."""
        return source.generation is None and source.name in self._watchers

    def absence(self, source: WatchSource) -> CraftcacheError:
        """The error that says why no generation of ``source`` can be served."""
        if source.name not in self._watchers:
            return _no_watch(source.name)
        report = self.report(source.name)
        if source.generation is not None:
            return NotFound(
                "there is no such generation",
                source=source.shown,
                hint=f"These are there: {', '.join(map(str, report.numbers)) or 'none'}",
            )
        detail = f": {report.detail}" if report.detail else ""
        why = (
            f"{report.rule.directory} has no verified generation yet; it is {report.state}{detail}"
        )
        if self._watchers[source.name].is_daemons_fault:
            # A bare CraftcacheError: the worker may load what is there by itself.
            return CraftcacheError(
                why, source=source.shown, hint="It is tried again", retryable=True
            )
        return Unavailable(
            why,
            source=source.shown,
            hint="Try again when both files are written and quiet",
            retry_after=report.rule.settle,
        )

    def _rules(self) -> dict[str, WatchRule]:
        return self._added | self._configured

    def _check_not_configured(self, name: str) -> None:
        if name in self._configured:
            raise PolicyDenied(
                "it stands in the setting watches of the configuration file",
                source=f"watch:{name}",
                hint="Change it there, and reload the daemon",
            )

    def _owner(self, name: str) -> str | None:
        """Name of the rule that a watch of that name comes from."""
        return next((rule for rule, names in self._watches_by_rule.items() if name in names), None)

    def _watcher(self, name: str) -> Watcher:
        if name not in self._watchers:
            raise _no_watch(name)
        return self._watchers[name]

    async def _replace(self, name: str, rule: WatchRule | None) -> None:
        await self._stop(name)
        if rule is not None:
            self._start(rule)

    def _start(self, rule: WatchRule) -> None:
        if not rule.is_pattern:
            self._watch(rule.name, rule, Target.of(rule.directory))
            return
        for name, directory in self._last_directory_by_watch.items():
            target = matching(rule, directory)
            if target is not None and name.startswith(f"{rule.name}-"):
                self._watch(rule.name, replace(rule, name=name, directory=directory), target)
        searching = PatternWatcher(
            rule,
            observer=self._observer,
            found=lambda found, target: self._watch(rule.name, found, target),
            threads=self._threads,
        )
        self._searching.append(searching)
        self._spawn(rule.name, searching.run())

    def _watch(self, owner: str, rule: WatchRule, target: Target) -> None:
        if watcher := self._watchers.get(rule.name):
            if watcher.rule.directory != rule.directory:
                log.warning("%s is not watched: %s is", rule.directory, watcher.rule.directory)
            return
        watcher = Watcher(
            rule,
            target,
            generations=Generations(
                self._store, rule.name, self._generation_numbers_by_watch.get(rule.name, ())
            ),
            maker=self._maker,
            observer=self._observer,
            listener=self._publisher,
            threads=self._threads,
        )
        self._watchers[rule.name] = watcher
        self._watches_by_rule[owner].append(rule.name)
        self._spawn(owner, self._run(watcher))

    async def _run(self, watcher: Watcher) -> None:
        try:
            await self._publisher.take_up(watcher)
        except OSError as error:  # the generation served before stays served
            log.warning("watch %s: its newest is not served: %s", watcher.rule.name, error)
        await watcher.run()

    async def _stop(self, owner: str) -> None:
        """Stop and forget the watchers and searches of a rule."""
        tasks = self._tasks.pop(owner, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for name in self._watches_by_rule.pop(owner, []):
            watcher = self._watchers.pop(name)
            self._generation_numbers_by_watch[name] = set(watcher.generations.numbers)
            if watcher.generations.served is not None:
                self._last_directory_by_watch[name] = watcher.rule.directory
            self._publisher.wake(name)

    def _spawn(self, owner: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[owner].append(task)
        task.add_done_callback(_log_failure)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a watch ended", exc_info=error)


def _no_watch(name: str) -> NotFound:
    return NotFound("no such watch", source=f"watch:{name}", hint="craftcache watch ls")
