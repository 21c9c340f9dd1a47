"""The asynchronous client: the same calls as coroutines.

Loading is blocking work whichever way it is asked for: maps are made, pages are read, tensors are
copied. So every call runs in a thread of a pool, and the event loop only waits; what follows a
watch, and so waits without end, has a thread of its own. Cancelling a call withdraws its request,
at the daemon too, and the coroutine ends when the thread has.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .daemon.transport import Cancellation, Cancelled
from .loading.operations import Operations
from .sources import PARTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    import torch
    from typing_extensions import Self

    from .daemon.client import CachedModel, WarmedModel
    from .loading.explanation import Explanation
    from .loading.export import Export
    from .loading.loader import Fallback
    from .sources import Part
    from .wire import Generation, Progress

__all__ = ["AsyncClient"]

T = TypeVar("T")

MAX_THREADS = 64
"""Calls of one client that run at once; further ones wait for their turn."""


class AsyncClient:
    """Client for asyncio; see Client for what each method promises and raises.

    Usable from any number of event loops; fork-safe; picklable. Making one reads the settings, as
    making a Client does; no call of it blocks the loop. Use it as an async context manager to end
    its threads and close its connections.

    Args:
        socket_dir: See Client.
        cache_dir: See Client.
        fallback: See Client.
    """

    def __init__(
        self,
        *,
        socket_dir: str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        fallback: Fallback | bool = "origin",
    ) -> None:
        self._do = Operations(socket_dir=socket_dir, cache_dir=cache_dir, fallback=fallback)
        self._process = os.getpid()
        self._threads = _new_pool()

    @property
    def cache_dir(self) -> Path:
        """The cache directory as this process sees it."""
        return self._do.loader.cache_dir

    @property
    def socket_dir(self) -> Path | None:
        """The daemon's socket directory; None on a machine that has none."""
        return self._do.loader.socket_dir

    async def load(
        self,
        source: str | os.PathLike[str],
        device: str | int | torch.device = "cpu",
        parts: Sequence[Part] = PARTS,
    ) -> Export:
        """See Client.load."""
        return await self._run(partial(self._do.load, source, device, parts))

    async def load_state_dict(
        self,
        file_or_url_or_id: str | os.PathLike[str],
        filename: str | None = None,
        device: str | int | torch.device = "cpu",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the checkpoint holds
        """See Client.load_state_dict."""
        return await self._run(
            partial(self._do.load_state_dict, file_or_url_or_id, filename, device, cache_dir)
        )

    async def load_into(
        self,
        module: torch.nn.Module,
        source: str | os.PathLike[str],
        part: Part = "lm",
        key: str | None = "best_state",
    ) -> None:
        """See Client.load_into."""
        await self._run(partial(self._do.load_into, module, source, part, key))

    async def resolve(self, source: str | os.PathLike[str], filename: str) -> Path:
        """See Client.resolve."""
        return await self._run(partial(self._do.resolve, source, filename))

    async def warm(
        self,
        sources: str | Iterable[str],
        *,
        filenames: Sequence[str] = (),
        resident: bool = False,
        pair_only: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> list[WarmedModel]:
        """See Client.warm; ``on_progress`` is called on the event loop."""
        loop = asyncio.get_running_loop()

        def report(progress: Progress) -> None:
            if on_progress is not None:
                loop.call_soon_threadsafe(on_progress, progress)

        return await self._run(
            partial(
                self._do.warm,
                sources,
                filenames=filenames,
                resident=resident,
                pair_only=pair_only,
                on_progress=report,
            )
        )

    async def status(self) -> dict[str, Any]:
        """See Client.status."""
        return await self._run(self._do.status)

    async def models(self) -> list[CachedModel]:
        """See Client.models."""
        return await self._run(self._do.models)

    async def follow(self, name: str, *, after: int | None = None) -> AsyncIterator[Generation]:
        """See Client.follow; leaving the loop, or cancelling it, withdraws the request."""
        has_daemon = False
        thread = ThreadPoolExecutor(1, thread_name_prefix="craftcache-follow")
        try:
            while True:
                generation = await _run(
                    thread, partial(self._do.next_generation, name, after, has_daemon=has_daemon)
                )
                has_daemon, after = True, generation.number
                yield generation
        finally:
            thread.shutdown(wait=False)

    async def explain(self, source: str | os.PathLike[str]) -> Explanation:
        """See Client.explain."""
        return await self._run(partial(self._do.explain, source))

    async def close(self) -> None:
        """End the threads and close idle connections; the client stays usable."""
        threads, self._threads = self._pool(), _new_pool()
        await asyncio.to_thread(threads.shutdown)
        self._do.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (partial(type(self), **self._do.arguments), ())

    async def _run(self, call: Callable[..., T]) -> T:
        return await _run(self._pool(), call)

    def _pool(self) -> ThreadPoolExecutor:
        """The threads of this process; a forked child has none of its parent's."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._threads = _new_pool()
        return self._threads


async def _run(threads: ThreadPoolExecutor, call: Callable[..., T]) -> T:
    """Run ``call`` in a thread; when cancelled, withdraw it and wait for the thread."""
    cancellation = Cancellation()

    def run() -> T:
        try:
            return call(cancellation=cancellation)
        except Cancelled as error:
            raise asyncio.CancelledError from error

    submitted = threads.submit(run)
    running = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        cancellation.withdraw()
        if not submitted.cancel():  # it has begun
            await asyncio.gather(running, return_exceptions=True)
        raise


def _new_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="craftcache")
