"""The service of a GPU as a process: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING

from craftcache.amounts import size_text
from craftcache.errors import CraftcacheError, Unavailable
from craftcached.serve.sockets import Door, bind_gpu_socket
from craftcached.serve.worker import Limits, WorkerServer

from .holdings import Holdings
from .service import GpuService

if TYPE_CHECKING:
    from craftcached.settings import Settings
    from craftcached.systemd import Notifier

    from .memory import GpuMemory

__all__ = ["run"]

log = logging.getLogger("craftcached")

SHARE_OF_MEMORY = 2
"""Part of the GPU's memory that models may take by default: one of so many."""


async def run(memory: GpuMemory, settings: Settings, notifier: Notifier) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        memory: The GPU's memory.
        settings: The settings; those of GPUs, sockets and clients are used.
        notifier: Tells the service manager the state.

    Raises:
        Unavailable: The socket cannot be made.
        CraftcacheError: The device has failed; a new process may be able to use it.
    """
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    max_bytes = settings.gpu_max_bytes or memory.total_bytes // SHARE_OF_MEMORY
    async with contextlib.AsyncExitStack() as life:
        holdings = await life.enter_async_context(
            Holdings(memory, max_bytes=max_bytes, ttl=settings.gpu_ttl)
        )
        service = GpuService(holdings, settings.socket_dir)
        life.callback(service.close)
        door = _open_door(memory.uuid, settings)
        life.callback(door.close)
        limits = Limits(connections_per_uid=settings.max_clients_per_uid)
        server = WorkerServer(door.listener, service, limits)
        life.push_async_callback(server.drain, settings.drain_seconds)
        server.start()
        log.info(
            "serving GPU %s (%s) on %s, with %s of its memory",
            *(memory.uuid, memory.name, door.path, size_text(max_bytes)),
        )
        notifier.ready()
        await _first_of(ending, holdings.lost)
        notifier.stopping()
    if holdings.lost.is_set():
        raise CraftcacheError(f"GPU {memory.uuid} failed", hint="See the log")


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


def _open_door(uuid: str, settings: Settings) -> Door:
    try:
        listener = bind_gpu_socket(settings.socket_dir, uuid, mode=settings.worker_socket_mode)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {error.filename or settings.socket_dir}: {error.strerror}",
            hint="Stop the other service of this GPU, or choose another socket_dir",
            retryable=False,
        ) from error
    return Door(listener, lambda: listener, is_ours=True)
