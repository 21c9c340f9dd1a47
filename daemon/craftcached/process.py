"""The daemon as a process: signals, reloads, and what the service manager hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError

from .app import Daemon
from .fetch import xet_command
from .settings import LIVE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from craftcache.wire import Progress

    from .settings import Settings
    from .systemd import InheritedSockets, Notifier

__all__ = ["run"]

log = logging.getLogger("craftcached")

ALIVE_SECONDS = 1.0
"""How often the service manager hears of the daemon, or oftener where it is less patient."""

SIGNS_PER_WATCHDOG = 4
"""Signs of life in the time without one after which the daemon is killed."""


async def run(
    read_settings: Callable[[], Settings], inherited: InheritedSockets, notifier: Notifier
) -> bool:
    """Serve until SIGTERM or SIGINT, whichever moment it comes in; SIGHUP reloads the settings.

    SIGINT that was ignored when the daemon started stays so: an interrupt at the terminal is not
    for what a shell runs in the background.

    Args:
        read_settings: Reads them anew.
        inherited: Sockets that are open already.
        notifier: Tells the service manager the daemon's state.

    Returns:
        Whether it was asked to stop; False where another daemon took over the cache.

    Raises:
        CraftcacheError: The daemon cannot start.
        OSError: The system refuses a file, socket or process that the daemon needs to start.
    """
    gc.disable()  # what is made until the daemon serves stays, and is looked through once
    settings = read_settings()
    daemon = Daemon(settings, inherited, xet=xet_command())
    loop = asyncio.get_running_loop()
    life = asyncio.current_task()
    assert life is not None  # noqa: S101  # a coroutine runs in a task
    ending = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        ending.append(signal.SIGINT)
    for number in ending:
        loop.add_signal_handler(number, life.cancel, f"received {number.name}")
    try:
        async with _signs_of_life(daemon, notifier), daemon:
            log.info("serving %s on %s", settings.cache_dir, settings.socket_dir)
            notifier.ready()
            # What is there by now stays. Looked through again by the collector, in the middle of
            # serving, it takes 0.1 ms of one hit in a hundred.
            gc.collect()
            gc.freeze()
            gc.enable()
            loop.add_signal_handler(signal.SIGHUP, _reload, daemon, read_settings, notifier)
            try:
                await daemon.until_cache_is_lost()
            finally:
                notifier.stopping()
    except asyncio.CancelledError as reason:
        log.info("stopped: %s", reason)
        return True
    log.error("ended, as another craftcached took over %s: let one write there", settings.cache_dir)
    return False


def _reload(daemon: Daemon, read_settings: Callable[[], Settings], notifier: Notifier) -> None:
    """Put in force what can be while the daemon runs, and say of the rest that it is not."""
    notifier.reloading()
    try:
        settings = read_settings()
    except CraftcacheError as error:
        log.error("not reloaded, the settings are as before: %s", error)  # noqa: TRY400
    else:
        changed = daemon.settings.differing(settings)
        daemon.apply(settings)
        log.info("reloaded: %s", ", ".join(sorted(changed & LIVE)) or "nothing changed")
        if later := changed - LIVE:
            log.warning("changed, but in force only after a restart: %s", ", ".join(sorted(later)))
    notifier.ready()


@contextlib.asynccontextmanager
async def _signs_of_life(daemon: Daemon, notifier: Notifier) -> AsyncIterator[None]:
    """Tell the service manager, from the event loop, for as long as that makes progress."""
    if not notifier.is_heard:
        yield
        return
    pause = min(ALIVE_SECONDS, (notifier.watchdog_seconds or ALIVE_SECONDS) / SIGNS_PER_WATCHDOG)

    async def tell() -> None:
        while True:
            notifier.alive(_doing(daemon.progress()))
            await asyncio.sleep(pause)

    telling = asyncio.create_task(tell(), name="signs of life")
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait([telling])


def _doing(progress: Sequence[Progress]) -> str:
    """What the daemon is doing, in one line for people."""
    if not progress:
        return "Idle"
    first = max(progress, key=lambda each: (each.state == "fetching", each.source))
    text = f"{first.state.capitalize()} {first.source}"
    if first.file is not None:
        text += f" {first.file}"
    if first.total and first.state == "fetching":
        text += f", {first.done * 100 // first.total} % of {first.total / 1e6:.0f} MB"
    return text if len(progress) == 1 else f"{text}; {len(progress) - 1} more"
