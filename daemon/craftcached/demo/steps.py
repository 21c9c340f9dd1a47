"""What the demonstration does, and what each step must have come to."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from craftcache import AsyncClient
from craftcache.amounts import counted

from .origin import DemoOrigin, sample_origin
from .processes import DaemonProcess, load_at_once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from craftcache import Progress

__all__ = ["Step", "Demonstration", "demonstration"]

FOREIGN = ("CRAFTCACHE_", "AUDIOCRAFT_", "HF_HUB_")
"""Beginnings of variables of the user's that must not decide what happens here."""

LONGEST_TEMPORARY = 60
"""Bytes of a path under which a socket's path still fits into the 107 that the kernel takes."""


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one step.

    Attributes:
        what: Was done.
        seconds: It took; of several loads at once, the slowest.
        bytes_fetched: Bytes downloaded from the origin during it; None where they are not counted.
        served_by: Who served what was asked for; empty where nothing was.
        broken: The promises that were not kept, in words.
    """

    what: str
    seconds: float
    bytes_fetched: int | None
    served_by: str
    broken: tuple[str, ...]


class Demonstration:
    """One run; ``steps`` gives its steps as they are done.

    Args:
        origin: The source that is warmed and loaded.
        daemon: The running daemon.
        environment: Environment variables of the workers.
        workers: Number of workers that load at once.
    """

    def __init__(
        self,
        origin: DemoOrigin,
        daemon: DaemonProcess,
        environment: Mapping[str, str],
        workers: int,
    ) -> None:
        self.source = origin.source
        self._origin = origin
        self._daemon = daemon
        self._environment = environment
        self._workers = workers
        self._revision = ""
        self._digest = origin.digest

    async def steps(self, report: Callable[[Progress], None]) -> AsyncIterator[Step]:
        """Do one step after the other.

        Args:
            report: Hears how far the warm has come.

        Raises:
            CraftcacheError: A step could not be done at all.
        """
        yield await self._warm(report)
        yield await self._load_in_workers()
        yield await self._kill_daemon()
        yield await self._load_without_daemon()

    async def _warm(self, report: Callable[[Progress], None]) -> Step:
        before, started = self._origin.statistics(), time.perf_counter()
        async with AsyncClient(
            socket_dir=self._daemon.socket_dir, cache_dir=self._daemon.cache_dir, fallback="none"
        ) as client:
            [model] = await client.warm(self.source, pair_only=True, on_progress=report)
        seconds = time.perf_counter() - started
        self._revision = model.revision
        promises = {"the daemon warms it": model.served_by == "daemon"}
        if sent := self._origin.since(before):
            size = self._origin.size
            promises |= {
                f"the hub sends each byte once, so {size}, not {sent.bytes_sent}": (
                    sent.bytes_sent == size
                ),
                f"the daemon counts as many bytes: {size}, not {model.bytes_fetched}": (
                    model.bytes_fetched == size
                ),
            }
        return Step("warm", seconds, model.bytes_fetched, model.served_by, _broken(promises))

    async def _load_in_workers(self) -> Step:
        count = self._workers
        what = "load in 1 worker" if count == 1 else f"load in {counted(count, 'worker')} at once"
        return await self._load(what, count, served_by="daemon")

    async def _kill_daemon(self) -> Step:
        started = time.perf_counter()
        status = await self._daemon.kill()
        promises = {"the daemon ends by SIGKILL": status == -signal.SIGKILL}
        return Step("kill the daemon", time.perf_counter() - started, None, "", _broken(promises))

    async def _load_without_daemon(self) -> Step:
        return await self._load("load without the daemon", 1, served_by="cache")

    async def _load(self, what: str, workers: int, *, served_by: str) -> Step:
        before = self._origin.statistics()
        loaded = await load_at_once(self.source, workers, self._environment)
        sent = self._origin.since(before)
        expected = self._digest = self._digest or loaded[0].digest
        servers = sorted({each.served_by for each in loaded})
        promises = {
            f"served by {served_by} alone": servers == [served_by],
            "every worker gets the revision that was warmed": all(
                each.revision == self._revision for each in loaded
            ),
            "every worker gets the same tensors": all(each.digest == expected for each in loaded),
            "nothing is asked of the hub": sent is None or sent.requests == 0,
        }
        return Step(
            what,
            max(each.seconds for each in loaded),
            sent.bytes_sent if sent else None,
            ", ".join(servers),
            _broken(promises),
        )


@asynccontextmanager
async def demonstration(source: str | None, workers: int) -> AsyncIterator[Demonstration]:
    """Set everything up in a temporary directory, and remove all of it in the end.

    Args:
        source: Source to warm and load; None is the sample.
        workers: Number of workers that load at once.

    Raises:
        Unavailable: The daemon does not start.
    """
    async with AsyncExitStack() as life:
        directory = Path(life.enter_context(_temporary_directory()))
        if source is None:
            origin = await life.enter_async_context(sample_origin(directory / "sample"))
        else:
            origin = DemoOrigin(source)
        environment = _environment(directory) | dict(origin.environment)
        daemon = await life.enter_async_context(DaemonProcess(directory, environment))
        environment |= {
            "CRAFTCACHE_CACHE_DIR": str(daemon.cache_dir),
            "CRAFTCACHE_SOCKET_DIR": str(daemon.socket_dir),
        }
        yield Demonstration(origin, daemon, environment, workers)


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    is_short = len(os.fsencode(tempfile.gettempdir())) <= LONGEST_TEMPORARY
    return tempfile.TemporaryDirectory(prefix="craftcache-", dir=None if is_short else "/tmp")  # noqa: S108 - the directory inside it is private


def _environment(directory: Path) -> dict[str, str]:
    """The user's environment without what would lead elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    own_cache = directory / "own"  # else a worker might find the model in the user's own cache
    return kept | {"HF_HUB_CACHE": str(own_cache), "HF_HUB_DISABLE_TELEMETRY": "1"}


def _broken(promises: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(promise for promise, is_kept in promises.items() if not is_kept)
