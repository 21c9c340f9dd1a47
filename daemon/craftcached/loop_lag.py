"""How late the event loop is: all that the daemon does on it waits for so long."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .histogram import Histogram

__all__ = ["measuring_lag"]

PERIOD_SECONDS: Final = 1.0
"""Time between two measurements: each takes some microseconds."""


@contextlib.asynccontextmanager
async def measuring_lag(
    lags: Histogram, period_seconds: float = PERIOD_SECONDS
) -> AsyncIterator[None]:
    """A context in which ``lags`` is told, once a period, how late the loop wakes a sleeper."""

    async def measure() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + period_seconds
            await asyncio.sleep(period_seconds)
            lags.observe(max(loop.time() - due, 0.0))

    measuring = asyncio.create_task(measure(), name="event loop lag")
    try:
        yield
    finally:
        measuring.cancel()
        await asyncio.wait([measuring])
