"""``GET /metrics`` over TCP, where the setting ``metrics_listen`` asks for it; and nothing else.

Whoever can connect can read it: it names hosts of origins and no sources, users or paths.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

from craftcache.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from craftcached.address import Address

    from .metrics import MetricsRoute

__all__ = ["metrics_listener"]


@contextlib.asynccontextmanager
async def metrics_listener(address: Address, metrics: MetricsRoute) -> AsyncIterator[int]:
    """A context in which metrics are served at ``address``; gives the port.

    Raises:
        Unavailable: Nothing can listen there.
    """
    app = web.Application(client_max_size=0)
    metrics.add_to(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address.host, address.port)
        try:
            await site.start()
        except OSError as error:
            raise Unavailable(
                f"metrics_listen {address} cannot be used: {error.strerror or error}",
                hint="Choose another address or port, or leave it out",
                retryable=False,
            ) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
