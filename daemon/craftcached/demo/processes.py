"""The processes of the demonstration: the daemon and its workers, each ended by its own pid."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE
from collections import deque
from typing import TYPE_CHECKING, Self

from craftcache.demo.worker import READY, LoadReply
from craftcache.errors import CraftcacheError, Unavailable, from_problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

__all__ = ["DaemonProcess", "load_at_once"]

START_SECONDS = 60.0
"""For a daemon to listen, or a worker to import torch, on a machine that is busy."""

LOG_LINES = 20
"""How much of the daemon's log is shown when it does not start."""


class DaemonProcess:
    """A ``craftcached`` of its own; an async context manager that never leaves one behind.

    Args:
        directory: Directory of all its files; its path must leave room for a socket's name.
        environment: Environment variables of the process.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.cache_dir = directory / "cache"
        self.socket_dir = directory / "run"
        self._state_dir = directory / "state"
        self._config_file = directory / "config.toml"
        self._environment = environment
        self._process: asyncio.subprocess.Process
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._rest: asyncio.Task[bool]

    async def __aenter__(self) -> Self:
        self._config_file.touch()  # an empty one, so that the machine's own has no say
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "craftcached"),
            *("--config", self._config_file),
            *("--cache-dir", self.cache_dir),
            *("--socket-dir", self.socket_dir),
            *("--state-dir", self._state_dir),
            env=self._environment,
            stderr=PIPE,
            start_new_session=True,  # an interrupt at the terminal is the demonstration's
        )
        try:
            await self._wait_listening()
        except BaseException:
            await self.kill()
            raise
        self._rest = asyncio.create_task(self._read_log(until=None))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        await self._rest

    async def kill(self) -> int:
        """SIGKILL it, which ends its helpers as well; returns its exit status."""
        if self._process.returncode is None:
            self._process.kill()
        return await self._process.wait()

    async def _wait_listening(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                if await self._read_log(until=f"serving {self.cache_dir}"):
                    return
        raise Unavailable("the daemon does not start", hint="\n".join(self._log))

    async def _read_log(self, *, until: str | None) -> bool:
        """Read the log up to a line with ``until`` or to its end; returns whether one came."""
        assert self._process.stderr is not None  # noqa: S101 - a pipe was asked for
        async for line in self._process.stderr:
            self._log.append(line.decode(errors="replace").rstrip())
            if until is not None and until in self._log[-1]:
                return True
        return False


async def load_at_once(source: str, count: int, environment: Mapping[str, str]) -> list[LoadReply]:
    """Load ``source`` in ``count`` new processes at the same moment.

    Raises:
        CraftcacheError: A worker failed.
    """
    async with contextlib.AsyncExitStack() as life:
        workers = [
            await life.enter_async_context(_worker(source, environment)) for _ in range(count)
        ]
        try:
            async with asyncio.timeout(START_SECONDS):
                for worker in workers:
                    await _wait_ready(worker)
        except TimeoutError as error:
            raise Unavailable(f"a worker is not ready after {START_SECONDS:g} s") from error
        return await asyncio.gather(*map(_load, workers))


@contextlib.asynccontextmanager
async def _worker(
    source: str, environment: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "craftcache.demo.worker", source),
        env=environment,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _wait_ready(worker: asyncio.subprocess.Process) -> None:
    assert worker.stdout is not None  # noqa: S101 - a pipe was asked for
    if (await worker.stdout.readline()).decode().strip() != READY:
        _, errors = await worker.communicate()
        raise _failed(worker, errors)


async def _load(worker: asyncio.subprocess.Process) -> LoadReply:
    output, errors = await worker.communicate(b"load\n")
    if not output:
        raise _failed(worker, errors)
    answer = json.loads(output)
    if problem := answer.get("problem"):
        raise from_problem(problem)
    return LoadReply(**answer)


def _failed(worker: asyncio.subprocess.Process, errors: bytes) -> CraftcacheError:
    said = errors.decode(errors="replace").strip()
    return CraftcacheError(f"a worker ended with status {worker.returncode}", hint=said or None)
