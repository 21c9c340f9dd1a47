"""Blocking work on files, done by threads and never left running behind a cancelled caller."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Threads"]

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A small pool of threads for reads, writes, hashing and fsync.

    hashlib and the system calls release the interpreter's lock, so a few threads suffice. Work that
    may take long has a pool of its own, so that it holds up no short questions to the disk.

    Args:
        count: Most threads; they start as they are needed.
        name: Prefix of the threads' names, as debuggers show them.
    """

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in a thread.

        A cancelled caller waits for the call to end before the cancellation goes on: so a file is
        never closed, or its space given away, under a thread that still writes to it.
        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            work.exception()  # retrieved, so that asyncio does not report it as forgotten
            raise

    def close(self) -> None:
        """End the threads; nothing may be running."""
        self._pool.shutdown(wait=False)
