"""Notes that change in memory, and are written to the database soon after."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["recording"]

SAVE_SECONDS: Final = 1.0
"""Time from a change until it is saved; a crash loses what came in it."""

RETRY_SECONDS: Final = 30.0
"""Time until it is tried again where it could not be saved."""


@contextlib.asynccontextmanager
async def recording(
    has_changed: asyncio.Event, save: Callable[[], Awaitable[bool]]
) -> AsyncIterator[None]:
    """A context in which changes are saved, the last of them at its end.

    Args:
        has_changed: Set by whoever makes a change, and cleared here.
        save: Saves all changes that are not saved yet; returns whether they are now.
    """

    async def save_changes() -> bool:
        has_changed.clear()
        is_saved = False
        try:
            is_saved = await save()
        finally:
            if not is_saved:  # or it may not be: a cancelled one is done again
                has_changed.set()
        return is_saved

    async def keep() -> None:
        while await has_changed.wait():
            await asyncio.sleep(SAVE_SECONDS)
            if not await save_changes():
                await asyncio.sleep(RETRY_SECONDS)

    keeping = asyncio.create_task(keep(), name="recording")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        if has_changed.is_set():
            await save_changes()
