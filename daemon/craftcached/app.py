"""The daemon's life: start, serve, stop."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import signal
from typing import TYPE_CHECKING, Self

from craftcache.cache import CacheDir
from craftcache.errors import Unavailable
from craftcache.policy import UrlPolicy

from .fetch import Engine, EngineSettings
from .inspect import Inspector
from .obtain import Obtainer
from .origins import HubOrigin, UrlOrigin
from .records import Records
from .serve.http import AdminServer
from .serve.peers import Administrators
from .serve.service_backend import ServiceBackend
from .serve.sockets import bind_admin_socket, bind_worker_socket
from .serve.worker import Limits, WorkerServer
from .service import Service
from .store import Store
from .warm import Warmer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .settings import Settings

__all__ = ["Daemon", "run"]

log = logging.getLogger("craftcached")


class Daemon:
    """Everything that serves one cache directory; an async context manager.

    Entering it opens the store and its parts and then the sockets, so that whoever can connect is
    answered. Leaving it goes the other way round: no new requests, running ones finish, downloads
    stop where the next start goes on.

    Args:
        settings: In force.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._life = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as life:
            service = await self._open_service(life)
            await self._open_sockets(life, service)
            await service.resume()
            self._life = life.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._life.aclose()

    async def _open_service(self, life: contextlib.AsyncExitStack) -> Service:
        settings = self._settings
        policy = UrlPolicy(
            insecure_hosts=frozenset(settings.insecure_hosts), hub_endpoint=settings.hub_endpoint
        )
        cache = CacheDir(settings.cache_dir)
        store = await life.enter_async_context(Store(cache))
        records = await life.enter_async_context(Records(settings.state_dir))
        inspector = await life.enter_async_context(Inspector())
        engine = await life.enter_async_context(
            Engine(
                cache.staging / "fetch",
                EngineSettings(
                    max_connections=settings.max_connections,
                    max_connections_per_host=settings.max_connections_per_host,
                    bandwidth=settings.max_bytes_per_second or None,
                ),
                check_url=policy.check_url,
            )
        )
        hub = HubOrigin(
            endpoint=settings.hub_endpoint, token=settings.hub_token, timeout=settings.hub_timeout
        )
        obtainer = Obtainer(
            store=store, hub=hub, urls=UrlOrigin(policy), fetcher=engine, inspector=inspector
        )
        warmer = Warmer(store=store, hub=hub, obtainer=obtainer, allow=settings.allow)
        service = Service(settings=settings, store=store, warmer=warmer, records=records)
        life.push_async_callback(service.close)
        return service

    async def _open_sockets(self, life: contextlib.AsyncExitStack, service: Service) -> None:
        settings = self._settings
        gid = _gid(settings.admin_group)
        workers = WorkerServer(
            self._listen(life, bind_worker_socket, settings.worker_socket_mode, None),
            ServiceBackend(service),
            Limits(connections_per_uid=settings.max_clients_per_uid),
        )
        admin = AdminServer(
            service,
            Administrators(settings.admin_group),
            shutdown_seconds=settings.drain_seconds,
        )
        listener = self._listen(life, bind_admin_socket, settings.admin_socket_mode, gid)
        life.push_async_callback(admin.close)
        await admin.start(listener)
        life.push_async_callback(workers.drain, settings.drain_seconds)
        workers.start()

    def _listen(
        self,
        life: contextlib.AsyncExitStack,
        bind: Callable[..., socket.socket],
        mode: int,
        gid: int | None,
    ) -> socket.socket:
        """A listening socket whose path is removed when the daemon ends."""
        try:
            listener = bind(self._settings.socket_dir, mode=mode, gid=gid)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {error.filename or self._settings.socket_dir}: {error.strerror}",
                hint="Stop the other daemon, or choose another socket_dir",
                retryable=False,
            ) from error
        path = listener.getsockname()
        life.callback(_remove, listener, path)
        return listener


async def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, whichever moment it comes in.

    Raises:
        CraftcacheError: The daemon cannot start.
        OSError: Likewise.
    """
    loop = asyncio.get_running_loop()
    life = asyncio.current_task()
    assert life is not None  # noqa: S101  # a coroutine runs in a task
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, life.cancel, f"received {number.name}")
    try:
        async with Daemon(settings):
            log.info("serving %s on %s", settings.cache_dir, settings.socket_dir)
            await loop.create_future()
    except asyncio.CancelledError as reason:
        log.info("stopped: %s", reason)


def _remove(listener: socket.socket, path: str) -> None:
    listener.close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        log.warning("admin_group %s does not exist", group)
        return None
