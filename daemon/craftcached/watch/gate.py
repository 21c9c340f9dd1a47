"""A command of the administrator's that looks at a candidate before anybody is served it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import tempfile
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ask_gate"]

GATE_SECONDS = 600.0
"""Time after which a gate that has not ended counts as refusing."""

SAID_BYTES = 400
"""Bytes of the end of its output that are given as the reason."""


async def ask_gate(command: str, candidate: Path, name: str) -> str:
    """Run a gate; its reason to refuse, or nothing where it lets the candidate pass.

    Args:
        command: Split as a shell would; the candidate's directory is its last argument.
        candidate: Directory that holds both files under their own names.
        name: Name of the watch; in the environment as ``CRAFTCACHE_WATCH``.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = await asyncio.create_subprocess_exec(
                *shlex.split(command),
                str(candidate),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=os.environ | {"CRAFTCACHE_WATCH": name},
                start_new_session=True,  # it and its children end together
            )
        except (OSError, ValueError) as error:
            return f"the gate cannot be run: {error}"
        try:
            async with asyncio.timeout(GATE_SECONDS):
                status = await process.wait()
        except TimeoutError:
            return f"the gate did not decide within {GATE_SECONDS:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if status == 0:
            return ""
        last = await asyncio.to_thread(_last, said)
        return f"the gate refused it (exit status {status}){last}"


def _last(said: IO[bytes]) -> str:
    """The end of what a gate said, in one line."""
    said.seek(max(said.seek(0, os.SEEK_END) - SAID_BYTES, 0))
    words = " ".join(said.read().decode("utf-8", "replace").split())
    shown = "".join(c if c.isprintable() else "?" for c in words)
    return f": {shown}" if shown else ""
