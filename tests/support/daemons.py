"""Real daemons for the tests: ``craftcached`` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Self

from craftcache import AsyncClient, Client
from tests.support import DATA

from .forked import ForkedProcess, can_be_forked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["DaemonProcess", "EXPORT", "EXPORT_FILES", "ServingProcess"]

EXPORT = DATA / "musicgen-tiny"
"""A real export, written by AudioCraft itself."""

EXPORT_FILES = {name: EXPORT / name for name in ("state_dict.bin", "compression_state_dict.bin")}


class ServingProcess:
    """A program that logs to stderr once it serves; a context manager.

    Entering waits until it serves. Leaving ends it, if the test has not, and waits for it.

    Args:
        command: What is run.
        serving: What the line has that it logs then.
        environment: Added to the test's own.
        cwd: Where it runs; None where the test does.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        serving: str,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._command = list(command)
        self._serving = serving
        self._environment = dict(environment or {})
        self._cwd = cwd
        self._process: subprocess.Popen[str] | ForkedProcess
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._serves = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.wait()

    def start(self) -> None:
        """Start it (again) and wait until it serves, or fail with its log."""
        self.spawn()
        self._serves.wait()
        assert self._process.poll() is None, self.log

    def spawn(self) -> None:
        """Start it without waiting."""
        if self._reader is not None:
            self._reader.join()  # what the last one said comes before what this one says
        self._serves.clear()
        self._process = self._run(os.environ | self._environment)
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it has logged so far."""
        return "".join(self._lines)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Let it accept connections and never answer."""
        self._process.send_signal(signal.SIGSTOP)

    def terminate(self) -> int:
        """Ask it to stop; returns its exit status."""
        self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for it to end by itself, with all that it says; returns its exit status."""
        status = self._process.wait()
        if self._reader is not None:
            self._reader.join()
        return status

    def _run(self, environment: dict[str, str]) -> subprocess.Popen[str] | ForkedProcess:
        return subprocess.Popen(
            self._command, env=environment, cwd=self._cwd, stderr=subprocess.PIPE, text=True
        )

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.append(line)
                if self._serving in line:
                    self._serves.set()
        self._serves.set()


class DaemonProcess(ServingProcess):
    """A ``craftcached`` with its directories under ``base``; see ServingProcess.

    Args:
        base: Where its directories are.
        arguments: Of the command line.
        within: A command that runs the one that is appended to it, by exec.
        environment: Added to the test's own.
    """

    def __init__(
        self, base: Path, *arguments: str, within: Sequence[str] = (), **environment: str
    ) -> None:
        self.cache_dir = base / "cache"
        self.socket_dir = base / "run"
        self.state_dir = base / "state"
        self._arguments = (
            *("--log-level", "debug"),
            *("--cache-dir", str(self.cache_dir)),
            *("--socket-dir", str(self.socket_dir)),
            *("--state-dir", str(self.state_dir)),
            *arguments,
        )
        self._is_within = bool(within)
        super().__init__(
            [*within, sys.executable, "-m", "craftcached", *self._arguments],
            serving="serving",
            environment=environment,
        )

    def _run(self, environment: dict[str, str]) -> subprocess.Popen[str] | ForkedProcess:
        if self._is_within or not can_be_forked(environment):
            return super()._run(environment)
        return ForkedProcess(self._arguments, environment)

    def client(self) -> Client:
        """A client of this daemon and its cache."""
        return Client(socket_dir=self.socket_dir, cache_dir=self.cache_dir)

    def async_client(self) -> AsyncClient:
        """Likewise for asyncio."""
        return AsyncClient(socket_dir=self.socket_dir, cache_dir=self.cache_dir)
