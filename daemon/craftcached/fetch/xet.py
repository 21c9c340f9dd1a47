"""Files of Xet repositories, by huggingface_hub's own client in a process that can be killed.

That client is native code without time limits or cancellation, so it runs outside the daemon, and
is killed when it brings nothing for a time. What it wrote is verified like everything else. It is
only ever a faster way: where it is missing, stalls or fails, the same file comes by plain HTTP.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from typing import TYPE_CHECKING

from craftcache.errors import Unavailable

from .faults import Fault, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from craftcache.network.proxies import ProxyRules

    from .types import RemoteFile

__all__ = ["Xet", "xet_command"]

_YES = frozenset({"1", "ON", "YES", "TRUE"})


def xet_command() -> Sequence[str] | None:
    """How to start the process, or None where Xet is not installed or is switched off."""
    if os.environ.get("HF_HUB_DISABLE_XET", "").upper() in _YES:
        return None
    if importlib.util.find_spec("hf_xet") is None:
        return None
    return (sys.executable, "-m", "craftcached.fetch.xet_child")


class Xet:
    """Runs the process, one for each file.

    Args:
        command: Command line that starts it.
        stall_seconds: Time without a byte after which it is killed.
        rules: The proxies that it goes through.
    """

    def __init__(self, command: Sequence[str], stall_seconds: float, rules: ProxyRules) -> None:
        self._command = command
        self._rules = rules
        self._stall_seconds = stall_seconds

    async def fetch(
        self, file: RemoteFile, path: Path, size: int, report: Callable[[int], None]
    ) -> None:
        """Have ``file`` written to ``path``, unverified.

        Raises:
            Fault: The process failed or stalled, and is gone.
        """
        request = {"url": file.url, "headers": dict(file.headers), "path": str(path), "size": size}
        try:
            environment = self._environment()
        except Unavailable as error:  # said of the plain request that follows
            raise Fault(Trouble.LOST, error.message) from None
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
        )
        try:
            await self._follow(process, json.dumps(request), report)
        except TimeoutError:
            raise Fault(Trouble.STALLED, "the Xet client stalled") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise Fault(Trouble.LOST, f"the Xet client ended with status {process.returncode}")

    def _environment(self) -> dict[str, str]:
        """The daemon's own, with its proxies spelled out and without ``.netrc``."""
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        ours = {"HF_XET_CHUNK_CACHE_SIZE_BYTES": "0", "NETRC": os.devnull}
        return kept | ours | self._rules.to_environment()

    async def _follow(
        self, process: asyncio.subprocess.Process, request: str, report: Callable[[int], None]
    ) -> None:
        """Pass on what the process tells until it ends."""
        assert process.stdin is not None  # noqa: S101  # for mypy: they are pipes
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(request.encode() + b"\n")
        while True:
            async with asyncio.timeout(self._stall_seconds):
                line = await process.stdout.readline()
            if not line:
                break
            if line.strip().isdigit():
                report(int(line))
        async with asyncio.timeout(self._stall_seconds):
            await process.wait()
