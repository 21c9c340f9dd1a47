"""What the tests of watches share: pairs, writers, and watches without the rest of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from craftcache.cache.directory import CacheDir
from craftcache.checkpoint.index import dump
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.recognize import recognized
from craftcache.sources import FILENAMES, Part
from craftcache.watch_rule import WatchRule
from craftcached.database import Database
from craftcached.events import Event, Events
from craftcached.store.store import Store
from craftcached.watch import Report, Watches
from tests.support.checkpoints import saved

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from craftcache.cache.manifest import Manifest

SETTLE = 0.15
"""Seconds; longer than any pause between two writes of these tests."""


@lru_cache(maxsize=64)
def content(part: Part, value: int, size: int = 1000) -> bytes:
    """A checkpoint of one part of which every number is ``value``."""
    return saved(
        {
            "best_state": {"x": torch.full((size,), float(value))},
            "xp.cfg": f"part: {part}\nvalue: {value}\n",
            "version": "1.3.0",
            "exported": True,
        }
    )


def write(directory: Path, part: Part, data: bytes) -> None:
    """Overwrite one file in place, as torch.save does: truncated first."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / FILENAMES[part]).open("wb") as file:
        file.write(data)


def write_pair(directory: Path, value: int) -> None:
    """Overwrite both files in place."""
    write(directory, "lm", content("lm", value))
    write(directory, "compression", content("compression", value))


class Examiner:
    """Inspects as the daemon's confined children do, but in this process."""

    async def inspect(self, path: Path, *, source: str) -> bytes:
        def look() -> bytes:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                with recognized(descriptor):
                    return dump(read_index(descriptor))
            finally:
                os.close(descriptor)

        return await asyncio.to_thread(look)


@dataclass
class Rig:
    """Running watches, and what becomes of them."""

    watches: Watches
    store: Store
    happened: asyncio.Queue[Event]
    generations: list[Manifest]
    _states: list[str] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, looked at after each event."""
        while not condition():
            self._note(await self.happened.get())

    async def until_state(self, name: str, state: str, detail: str = "") -> Report:
        """Wait until a watch is in a state whose detail has these words."""

        def reached() -> bool:
            report = self._report(name)
            return report is not None and report.state == state and detail in report.detail

        await self.until(reached)
        return self.watches.report(name)

    async def until_served(self, name: str, number: int) -> Manifest:
        """Wait until a generation is served and its watch has nothing more to do."""

        def reached() -> bool:
            report = self._report(name)
            served = report.served if report else None
            return served is not None and _number(served) == number

        await self.until(reached)
        report = await self.until_state(name, "ready")
        assert report.served is not None
        return report.served

    def states(self) -> list[str]:
        """All that the watches have been in, as they were told."""
        while not self.happened.empty():
            self._note(self.happened.get_nowait())
        return self._states

    def _note(self, event: Event) -> None:
        if event["event"] == "watch":
            self._states.append(event["state"])

    def _report(self, name: str) -> Report | None:
        names = {report.rule.name: report for report in self.watches.reports()}
        return names.get(name)

    def number(self, name: str) -> int | None:
        """Of the generation that is served."""
        served = self.watches.report(name).served
        return None if served is None else _number(served)


def _number(manifest: Manifest) -> int:
    assert manifest.watched is not None
    return manifest.watched.generation


def rule(directory: Path | str, name: str = "run", **options: Any) -> WatchRule:
    """A watch of the tests."""
    return WatchRule(name=name, directory=str(directory), **({"settle": SETTLE} | options))


@contextlib.asynccontextmanager
async def watching(base: Path, *rules: WatchRule) -> AsyncIterator[Rig]:
    """Watches upon a real store and real records below ``base``."""
    generations: list[Manifest] = []

    async def queue_needs(generation: Manifest) -> None:
        generations.append(generation)

    events = Events()
    async with Store(CacheDir(base / "cache")) as store, Database(base / "state") as records:
        watches = Watches(
            store=store, inspector=Examiner(), records=records, events=events, rules=rules
        )
        happened: asyncio.Queue[Event] = asyncio.Queue()
        events.observe(happened.put_nowait)
        async with watches.running(queue_needs):
            yield Rig(watches, store, happened, generations)
