"""The daemon's listening sockets: both Unix sockets, and metrics over TCP; opened and closed."""

from __future__ import annotations

import asyncio
import grp
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from craftcache.errors import Unavailable
from craftcached.address import Address
from craftcached.directory_monitor import MonitoredDirectory
from craftcached.loop_lag import measuring_lag

from .handler import CountedHandler
from .http import AdminServer
from .metrics import MetricsRoute
from .metrics_listener import metrics_listener
from .observability_routes import ObservabilityRoutes
from .sockets import Door, bind_admin_socket, bind_worker_socket
from .worker import Limits, WorkerServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from contextlib import AsyncExitStack

    from craftcached.directory_monitor import DirectoryMonitor
    from craftcached.fetch.mirrors import MirrorStatistics
    from craftcached.observability import Observability
    from craftcached.service import Service
    from craftcached.settings import Settings
    from craftcached.systemd import InheritedSockets

    from .peers import Administrators

__all__ = ["Listeners"]

log = logging.getLogger("craftcached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """The daemon's listening sockets, and the servers behind them.

    Attributes:
        settings: Where the sockets are, and who may connect.
        inherited: Sockets that a service manager listens on; those that are missing are made.
        service: Answers.
        observability: Told of who asks for what.
        administrators: Who may change something.
        mirrors: Returns the counters of the mirrors.
        monitor: Makes sockets anew that were removed.
    """

    settings: Settings
    inherited: InheritedSockets
    service: Service
    observability: Observability
    administrators: Administrators
    mirrors: Callable[[], Sequence[MirrorStatistics]]
    monitor: DirectoryMonitor

    async def open(self, life: AsyncExitStack) -> None:
        """Serve until ``life`` is left, which lets running requests end first.

        Raises:
            Unavailable: A socket cannot be had.
        """
        settings, observability = self.settings, self.observability
        life.enter_context(observability.processes)
        gid = _gid(settings.admin_group)
        worker_door = self._door(
            life, self.inherited.worker, bind_worker_socket, settings.worker_socket_mode, None
        )
        admin_door = self._door(
            life, self.inherited.admin, bind_admin_socket, settings.admin_socket_mode, gid
        )
        workers = WorkerServer(
            worker_door.listener,
            CountedHandler(
                self.service, observability.counts, observability.processes, observability.refusals
            ),
            Limits(connections_per_uid=settings.max_clients_per_uid),
            refusals=observability.refusals,
            fallbacks=observability.counts.count_fallbacks,
        )
        metrics = MetricsRoute(self.service, workers.statistics, observability.counts, self.mirrors)
        admin = AdminServer(
            self.service,
            self.administrators,
            metrics,
            ObservabilityRoutes(self.service, observability, workers.statistics),
            observability.refusals,
            drain_seconds=settings.drain_seconds,
        )

        async def drain() -> None:
            await asyncio.gather(workers.drain(settings.drain_seconds), admin.close())

        life.push_async_callback(drain)
        await admin.start(admin_door.listener)
        workers.start()
        await life.enter_async_context(measuring_lag(observability.counts.loop_lag))
        if settings.metrics_listen:
            address = Address.parse(settings.metrics_listen)
            port = await life.enter_async_context(metrics_listener(address, metrics))
            log.info("metrics are at http://%s/metrics", replace(address, port=port))
        self._look_after(worker_door, admin_door, workers, admin)
        # Entered last, so left first: sockets that the shutdown closes must not be reopened.
        await life.enter_async_context(self.monitor)

    def _look_after(
        self, worker_door: Door, admin_door: Door, workers: WorkerServer, admin: AdminServer
    ) -> None:
        """Have sockets that are removed made anew."""

        async def reopen_worker() -> None:
            worker_door.reopen()
            workers.listen_on(worker_door.listener)

        async def reopen_admin() -> None:
            admin_door.reopen()
            await admin.listen_on(admin_door.listener)

        for door, reopen in ((worker_door, reopen_worker), (admin_door, reopen_admin)):
            self.monitor.look_after(
                MonitoredDirectory(f"the socket {door.path}", door.is_gone, reopen)
            )

    def _door(
        self,
        life: AsyncExitStack,
        inherited: socket.socket | None,
        bind: Callable[..., socket.socket],
        mode: int,
        gid: int | None,
    ) -> Door:
        """The inherited socket, or a new one whose path is removed when the daemon ends."""

        def listen() -> socket.socket:
            return bind(self.settings.socket_dir, mode=mode, gid=gid)

        try:
            door = Door(inherited or listen(), listen, is_ours=inherited is None)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {error.filename or self.settings.socket_dir}: {error.strerror}",
                hint="Stop the other daemon, or choose another socket_dir",
                retryable=False,
            ) from error
        life.callback(door.close)
        return door


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid if group else None
    except KeyError:
        log.warning("admin_group %s does not exist", group)
        return None
