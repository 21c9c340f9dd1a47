"""How fast a node fetches: all its downloads together, by a clock of the test's own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from craftcache.digests import Digests, Promise, Stamp
from craftcached.fetch import Fetched, Priority, RemoteFile
from craftcached.fetch.measured_rate import MEMORY_SECONDS, MeasuredFetcher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE = RemoteFile("org/model", "https://example.com/f", Promise(), "key")


def rate(measured: MeasuredFetcher) -> float | None:
    """The rate at this moment."""
    return measured.bytes_per_second


class Downloads:
    """A Fetcher whose downloads end when the test says so."""

    def __init__(self, path: Path) -> None:
        self.seconds = 0.0
        self._path = path
        self.waiting: list[asyncio.Future[int]] = []

    async def fetch(
        self, file: RemoteFile, *, priority: Priority, report: Callable[[int, int | None], None]
    ) -> Fetched:
        self.waiting.append(asyncio.get_running_loop().create_future())
        size = await self.waiting[-1]
        return Fetched(self._path, Digests(size, "0" * 64), Stamp(size, 1, 1), None, size, 0)

    def hurry(self, key: str) -> None:
        """Nothing to hurry."""


async def test_downloads_at_once_take_the_time_of_one(tmp_path: Path) -> None:
    downloads = Downloads(tmp_path)
    measured = MeasuredFetcher(downloads, lambda: downloads.seconds)
    assert rate(measured) is None

    def fetching() -> asyncio.Task[Fetched]:
        fetch = measured.fetch(FILE, priority=Priority.BACKGROUND, report=lambda *_: None)
        return asyncio.ensure_future(fetch)

    async def end(number: int, size: int, task: asyncio.Task[Fetched]) -> None:
        downloads.waiting[number].set_result(size)
        await task

    tasks = [fetching(), fetching()]
    await asyncio.sleep(0)
    downloads.seconds = 2.0
    await end(0, 3_000_000, tasks[0])
    downloads.seconds = 4.0
    await end(1, 5_000_000, tasks[1])
    assert rate(measured) == 2_000_000
    downloads.seconds = 1000.0  # nothing runs: that is no time of downloading
    failing = fetching()
    await asyncio.sleep(0)
    downloads.seconds = 1004.0
    failing.cancel()
    await asyncio.wait([failing])
    assert rate(measured) == 1_000_000
    late = fetching()
    await asyncio.sleep(0)
    downloads.seconds += MEMORY_SECONDS
    await end(3, int(MEMORY_SECONDS) * 9_000_000, late)
    before = rate(measured)
    assert before is not None
    again = fetching()
    await asyncio.sleep(0)
    downloads.seconds += 1.0
    await end(4, 1, again)
    after = rate(measured)
    assert after is not None
    assert before * 0.98 < after < before
