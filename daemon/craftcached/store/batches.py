"""Looks at thousands of models, a few at a time, beside the requests."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["paced_batches"]

T = TypeVar("T")

LOOKED_AT_ONCE: Final = 32
"""Models that one thread looks at before others have their turn: some milliseconds."""

LOOK_SHARE: Final = 0.2
"""Part of the time that the looks take, so that requests after a start hardly notice them."""

MIN_PAUSE_SECONDS: Final = 0.02
"""Shortest pause between two looks."""

MAX_PAUSE_SECONDS: Final = 0.25
"""Longest pause: what takes longer than its share of that hashes files, and holds nobody up."""


async def paced_batches(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """The items a few at a time, with pauses in which requests have the processor.

    Each pause is in proportion to the time that the batch before it took; see LOOK_SHARE.
    """
    pause = 0.0
    for start in range(0, len(items), LOOKED_AT_ONCE):
        await asyncio.sleep(pause)
        began = time.perf_counter()
        yield items[start : start + LOOKED_AT_ONCE]
        taken = time.perf_counter() - began
        pause = min(max(taken * (1 / LOOK_SHARE - 1), MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS)
