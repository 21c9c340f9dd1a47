"""The asynchronous client: the same calls as coroutines.

Loading is blocking work whichever way it is asked for: maps are made, pages are read, tensors are
copied. So every call runs in a thread of a pool, and the event loop only waits; what follows a
watch, and so waits without end, has a thread of its own. Cancelling a call withdraws its request,
at the daemon too, and the coroutine ends when the thread has. Closing the client does so with all
that run, and no thread keeps a process alive.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import weakref
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .daemon.transport import Call, Cancellation, Cancelled
from .daemon_threads import DaemonThreads
from .loading.operations import Operations
from .sources import PARTS
from .wire import WarmOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path

    import torch
    from typing_extensions import Self, Unpack

    from .daemon.events import DaemonEvent
    from .loading.explanation import Explanation
    from .loading.export import Export
    from .plan import Fallback
    from .sources import Part
    from .wire import (
        CachedModel,
        DaemonStatus,
        Generation,
        Progress,
        WarmedModel,
        WarmKeywords,
    )

__all__ = ["AsyncClient"]

T = TypeVar("T")

MAX_THREADS = 64
"""Calls of one client that run at once; further ones wait for their turn."""

EXIT_SECONDS = 2.0
"""Time that the end of the interpreter waits for cancelled calls to clean up."""


class AsyncClient:
    """Client for asyncio; see Client for what each method promises and raises.

    Usable from any number of event loops; fork-safe; picklable. Making one reads the settings, as
    making a Client does; no call of it blocks the loop. Use it as an async context manager to end
    what still runs and close its connections.

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
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._threads = _new_threads()
        self._running: dict[Future[Any], Cancellation] = {}
        _all_clients.add(self)

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
        *,
        share: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float | None = None,
    ) -> Export:
        """See Client.load; ``on_progress`` is called on the event loop."""
        load = partial(self._do.load, source, device, parts, timeout, share=share)
        return await self._run(load, _on_loop(on_progress))

    async def load_state_dict(
        self,
        file_or_url_or_id: str | os.PathLike[str],
        filename: str | None = None,
        device: str | int | torch.device = "cpu",
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        share: bool = False,
    ) -> Any:  # noqa: ANN401  # whatever the checkpoint holds
        """See Client.load_state_dict."""
        return await self._run(
            partial(
                self._do.load_state_dict,
                file_or_url_or_id,
                filename,
                device,
                cache_dir,
                share=share,
            )
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
        on_progress: Callable[[Progress], None] | None = None,
        **options: Unpack[WarmKeywords],
    ) -> list[WarmedModel]:
        """See Client.warm; ``on_progress`` is called on the event loop."""
        wanted = WarmOptions.of(options)
        warm = partial(self._do.warm, sources, wanted)
        return await self._run(warm, _on_loop(on_progress))

    async def status(self) -> DaemonStatus:
        """See Client.status."""
        return await self._run(self._do.status)

    async def models(self) -> list[CachedModel]:
        """See Client.models."""
        return await self._run(self._do.models)

    async def follow(self, name: str, *, after: int | None = None) -> AsyncIterator[Generation]:
        """See Client.follow; leaving the loop, or cancelling it, withdraws the request."""
        has_daemon = False
        thread = DaemonThreads(1, "craftcache-follow")
        try:
            while True:
                generation = await self._run(
                    partial(self._do.next_generation, name, after, has_daemon=has_daemon),
                    threads=thread,
                )
                has_daemon, after = True, generation.number
                yield generation
        finally:
            await asyncio.to_thread(thread.close)

    def events(self, since: int | None = None) -> AsyncIterator[DaemonEvent]:
        """See Client.events."""
        return self._do.admin.async_events(since)

    async def explain(self, source: str | os.PathLike[str]) -> Explanation:
        """See Client.explain."""
        return await self._run(partial(self._do.explain, source))

    async def close(self) -> None:
        """Cancel all calls that run, and do what Client.close does; the client stays usable."""
        running = self.withdraw()
        await asyncio.gather(*map(asyncio.wrap_future, running), return_exceptions=True)
        threads, self._threads = self._threads, _new_threads()
        await asyncio.to_thread(threads.close)
        self._do.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (partial(type(self), **self._do.arguments), ())

    async def _run(
        self,
        method: Callable[..., T],
        report: Callable[[Progress], None] | None = None,
        *,
        threads: DaemonThreads | None = None,
    ) -> T:
        """Call ``method`` in a thread; when cancelled, withdraw it and wait for the thread."""
        cancellation = Cancellation()
        call = Call(cancellation=cancellation) if report is None else Call(report, cancellation)

        def run() -> T:
            try:
                return method(call=call)
            except Cancelled as error:
                raise asyncio.CancelledError from error

        if self._process != os.getpid():  # a forked child has none of its parent's threads
            self._begin()
        submitted = (threads or self._threads).submit(run)
        self._running[submitted] = cancellation
        submitted.add_done_callback(partial(self._running.pop))
        running = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            cancellation.withdraw()
            if not submitted.cancel():  # it has begun
                await asyncio.gather(running, return_exceptions=True)
            raise

    def withdraw(self) -> list[Future[Any]]:
        """Cancel all calls that run; returns those that have not ended yet."""
        if self._process != os.getpid():
            return []
        running = list(self._running.items())
        for _, cancellation in running:
            cancellation.withdraw()
        return [future for future, _ in running if not future.cancel()]


def _on_loop(
    on_progress: Callable[[Progress], None] | None,
) -> Callable[[Progress], None] | None:
    """What a thread calls to have ``on_progress`` called on the running event loop."""
    if on_progress is None:
        return None
    listener, loop = on_progress, asyncio.get_running_loop()
    return lambda progress: _call_on(loop, listener, progress)


def _call_on(
    loop: asyncio.AbstractEventLoop, listener: Callable[[Progress], None], progress: Progress
) -> None:
    loop.call_soon_threadsafe(listener, progress)


def _new_threads() -> DaemonThreads:
    return DaemonThreads(MAX_THREADS, "craftcache")


_all_clients: weakref.WeakSet[AsyncClient] = weakref.WeakSet()


@atexit.register
def _withdraw_all() -> None:
    """At the end of the interpreter, where a loop was left with calls in it."""
    wait([each for client in _all_clients for each in client.withdraw()], EXIT_SECONDS)
