"""What it costs that all is checked: hot loads with and without it, and beside a running scrub.

``python -m tests.bench.integrity`` measures ratios in one run, each contender in turn:

- a hot load by the daemon, and by one that hands out indexes as they lie in the cache;
- a hot load by a worker alone, and by one that believes the index as it lies there;
- a fetch, and hot loads, beside a scrub that has files to hash, and without one.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import re
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import now
from tests.bench.load import FILENAME, SHAPES, make_checkpoint
from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.hub import hub_in_thread
from tests.support.hub.content import OnDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from craftcache.cache.manifest import FileRecord
    from tests.bench.shapes import Shape
    from tests.support.hub import TestHub

    Loader: TypeAlias = Callable[[], object]

RESULTS = Path(__file__).parent / "results" / "integrity.json"
SOURCE, SCRUBBED = "bench/hot", "bench/scrubbed"
UNCHECKED = (sys.executable, "-m", "tests.bench.unchecked")
AGE = timedelta(days=4)
"""Since the hashing of what is scrubbed: more than half of ``scrub_days``."""

PLAIN = "vocabulary.txt"
"""Of what is fetched: no checkpoint, so that no inspection is timed."""

FILES = 16
"""Files that are scrubbed, each of 64 MiB: a second of the scrub's work."""

SLICE_SECONDS = 2.0
"""Time that loads are timed for at a stretch, beside a scrub or without."""

CALLS = 20
"""Calls of each kind that are compared with one another."""

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured with and without something, in milliseconds.

    Attributes:
        what: Was done.
        checked: With it.
        bare: Without it.
        allowed: The most that the ratio may be.
    """

    what: str
    checked: float
    bare: float
    allowed: float

    @property
    def ratio(self) -> float:
        """How many times as long it takes with it."""
        return self.checked / self.bare

    def __str__(self) -> str:
        verdict = "" if self.ratio <= self.allowed else "   MISSED"
        return (
            f"{self.what:44}{self.checked:10.3f} ms{self.bare:10.3f} ms"
            f"{self.ratio:9.3f}x (at most {self.allowed}){verdict}"
        )


def in_turn(what: str, checked: Loader, bare: Loader, rounds: int, allowed: float) -> Figure:
    """A load with something and one without, which take turns call by call.

    What differs is microseconds, and how fast the machine is changes by the second: the medians of
    twenty neighbouring calls are compared, and the median of all these ratios counts.
    """
    ratios, bares = [], []
    for number in range(rounds):
        gc.collect()
        taken: dict[Loader, list[float]] = {checked: [], bare: []}
        for call in range(CALLS):
            for load in (checked, bare) if (number + call) % 2 else (bare, checked):
                start = time.perf_counter()
                result = load()
                taken[load].append((time.perf_counter() - start) * 1000)
                del result
        bares.append(statistics.median(taken[bare]))
        ratios.append(statistics.median(taken[checked]) / bares[-1])
    bare_ms = statistics.median(bares)
    return Figure(what, bare_ms * statistics.median(ratios), bare_ms, allowed)


def loading(client: Client, served_by: str) -> Loader:
    assert client.load(SOURCE, parts=("lm",)).served_by == served_by
    return lambda: client.load(SOURCE, parts=("lm",)).lm


def measure_daemon(base: Path, hub: TestHub, rounds: int) -> Figure:
    """A hit, and a hit with indexes that nobody has checked."""
    with contextlib.ExitStack() as stack:
        loaders = {}
        for name, within in (("checked", ()), ("bare", UNCHECKED)):
            (base / name).mkdir()
            daemon = stack.enter_context(
                DaemonProcess(base / name, within=within, HF_ENDPOINT=hub.endpoint)
            )
            client = stack.enter_context(daemon.client())
            client.warm(SOURCE, filenames=(FILENAME,))
            loaders[name] = loading(client, "daemon")
        what = "hot load by the daemon, checked or not"
        return in_turn(what, loaders["checked"], loaders["bare"], rounds, 1.02)


def measure_alone(base: Path, rounds: int) -> Figure:
    """A load without a daemon, and one that does not hash the index."""
    cache_dir = base / "checked" / "cache"
    checked = CacheDir.read_index

    def believed(cache: CacheDir, record: FileRecord) -> bytes | None:
        return cache._index_content(record.sha256)

    with Client(socket_dir=base / "none", cache_dir=cache_dir, fallback="cache") as client:
        load = loading(client, "cache")

        def bare() -> object:
            CacheDir.read_index = believed  # type: ignore[method-assign,assignment]
            try:
                return load()
            finally:
                CacheDir.read_index = checked  # type: ignore[method-assign]

        return in_turn("hot load by a worker alone, checked or not", load, bare, rounds, 1.1)


class Scrubbing:
    """A daemon whose scrub has a lot to hash, and is turned on and off by reloads."""

    def __init__(self, base: Path, hub: TestHub, fetched: Path) -> None:
        self._hub = hub
        self._fetched = fetched
        self._count = 0
        self._config = base / "config.toml"
        self._set(days=0)
        self.daemon = DaemonProcess(
            base, "--config", str(self._config), HF_ENDPOINT=self._hub.endpoint
        )

    def turn(self, *, on: bool) -> None:
        """Turn the scrub on or off; what it is to hash is old again and not in memory then."""
        self._grow_old()
        self._set(days=7 if on else 0)
        os.kill(self.daemon.pid, signal.SIGHUP)

    def _set(self, days: int) -> None:
        self._config.write_text(f"scrub_days = {days}\n")

    def _grow_old(self) -> None:
        cache = CacheDir(self.daemon.cache_dir)
        for key, manifest in list(cache.published()):
            if manifest.source != SCRUBBED:
                continue
            old = tuple(replace(each, verified_at=now() - AGE) for each in manifest.files)
            cache.write_manifest_at(key, replace(manifest, files=old))
            for record in manifest.files:
                descriptor = os.open(cache.path(record), os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
        with contextlib.closing(
            sqlite3.connect(self.daemon.state_dir / "craftcached.sqlite")
        ) as db:
            db.execute("DELETE FROM hashings")
            db.commit()

    def fetch(self) -> list[float]:
        """The milliseconds of a fetch of something new."""
        self._count += 1
        source = f"bench/new-{self._count}"
        with self._fetched.open("r+b") as file:
            file.write(os.urandom(64))  # no bytes that are here already
        self._hub.repo(source).commit({PLAIN: OnDisk(self._fetched)}, lfs={PLAIN})
        with Api(self.daemon.socket_dir) as api:
            start = time.perf_counter()
            assert api.warm(source, files=(PLAIN,)).is_success
            taken = (time.perf_counter() - start) * 1000
            api.delete(source)
        return [taken]

    def loads(self) -> list[float]:
        """The milliseconds of each of many hot loads."""
        taken = []
        with self.daemon.client() as client:
            load = loading(client, "daemon")
            load()
            end = time.perf_counter() + SLICE_SECONDS
            while time.perf_counter() < end:
                start = time.perf_counter()
                result = load()
                taken.append((time.perf_counter() - start) * 1000)
                del result
        return taken


def measure_scrub(base: Path, hub: TestHub, fetched: Path, rounds: int) -> list[Figure]:
    """Fetches and hot loads beside a scrub and without one, in turn, each within seconds."""
    scrubbing = Scrubbing(base, hub, fetched)
    figures = []
    with scrubbing.daemon as daemon:
        with daemon.client() as client:
            client.warm(SOURCE, filenames=(FILENAME,))
            client.warm(SCRUBBED, filenames=tuple(f"{number}.txt" for number in range(FILES)))
        for what, measure in (
            ("a hot load beside a scrub, or without", scrubbing.loads),
            ("a fetch beside a scrub, or without", scrubbing.fetch),
        ):
            measure()
            taken: dict[bool, list[float]] = {True: [], False: []}
            for number in range(4 * rounds):
                for on in (True, False) if number % 2 else (False, True):
                    scrubbing.turn(on=on)
                    taken[on].append(statistics.median(measure()))
            figures.append(
                Figure(what, statistics.median(taken[True]), statistics.median(taken[False]), 1.05)
            )
        with Api(daemon.socket_dir) as api:
            metrics = api.request("GET", "/../metrics").text
        scrubbed = re.search(r"^craftcache_scrubbed_bytes_total (.*)$", metrics, re.MULTILINE)
        assert scrubbed is not None
        print(f"{float(scrubbed[1]) / 1e9:.1f} GB scrubbed meanwhile", flush=True)
    return figures


def run(shape: Shape, directory: Path, *, rounds: int) -> list[Figure]:
    """All of it, printed as it comes; files are made under ``directory``."""
    figures = []
    hot, twin, scrubbed = (directory / name for name in ("hot", "twin", "scrubbed"))
    make_checkpoint(shape, hot, twin)
    twin.unlink()
    scrubbed.mkdir()
    files = {f"{number}.txt": scrubbed / str(number) for number in range(FILES)}
    for path in files.values():
        path.write_bytes(os.urandom(MIB) * 64)
    fetched = directory / "fetched"
    fetched.write_bytes(os.urandom(MIB) * 256)
    with hub_in_thread() as hub:
        hub.repo(SOURCE).commit({FILENAME: OnDisk(hot)})
        hub.repo(SCRUBBED).commit(
            {name: OnDisk(path) for name, path in files.items()}, lfs=set(files)
        )
        for figure in (
            measure_daemon(directory, hub, 10 * rounds),
            measure_alone(directory, 10 * rounds),
        ):
            figures.append(figure)
            print(figure, flush=True)
        (directory / "scrub").mkdir()
        for figure in measure_scrub(directory / "scrub", hub, fetched, rounds):
            figures.append(figure)
            print(figure, flush=True)
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="craftcache-bench-") as directory:
        figures = run(SHAPES[0], Path(directory), rounds=arguments.rounds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(list(map(asdict, figures)), indent=2) + "\n")


if __name__ == "__main__":
    main()
