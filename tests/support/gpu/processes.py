"""Services of GPUs and their workers as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from tests.support import SUPPORT
from tests.support.daemons import ServingProcess

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EMULATED = (sys.executable, "-m", "tests.support.gpu.service")
ROOT = SUPPORT.parents[1]


class GpuServiceProcess(ServingProcess):
    """The service of a GPU; see ServingProcess.

    Args:
        socket_dir: The daemon's socket directory.
        command: What is run, in place of the emulated one.
        settings: Settings of the emulated one.
    """

    def __init__(
        self, socket_dir: Path, *, command: Sequence[str] | None = None, **settings: Any
    ) -> None:
        given = json.dumps({"socket_dir": str(socket_dir), **settings})
        super().__init__(command or [*EMULATED, given], serving="serving GPU", cwd=ROOT)


class GpuWorker:
    """A process of tests.support.gpu.worker; a context manager that ends it.

    Args:
        socket_dir: The daemon's socket directory.
        cache_dir: The cache directory as the worker sees it.
        options: See there.
    """

    def __init__(self, socket_dir: Path, cache_dir: Path, **options: Any) -> None:
        given = {"device": "cpu", "socket_dir": str(socket_dir), "cache_dir": str(cache_dir)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.gpu.worker", json.dumps(given | options)],
            cwd=ROOT,
            env={**os.environ, "HOME": "/tmp"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        assert self._heard()["ready"]
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Have it do something; returns what it says of that."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
        self._process.stdin.flush()
        return self._heard()

    def load(self, source: str = "org/model", **details: Any) -> dict[str, Any]:
        """Have it load."""
        return self.ask("load", source=source, **details)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Wait for its end; returns its exit status."""
        return self._process.wait()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"ended": self._process.wait()}
        return answer
