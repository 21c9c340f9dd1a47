"""How much of all models is in memory, for whoever asks again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from craftcache.cache.manifest import FileRecord

    from .residency import Residency

__all__ = ["ResidentTotal"]

LOOK_SHARE: Final = 0.05
"""Part of the time that looks may take, however often somebody asks."""

SHORT_LOOK_SECONDS: Final = 0.05
"""Time of a look that is taken at each question: some hundred models."""


class ResidentTotal:
    """The bytes of files that are in memory, looked at anew where that is short or long ago.

    To look opens each file. Of thousands that takes longer than a status may, and a program that
    shows one every second would have the daemon do nothing else: until a look was a twentieth of
    the time, what it found is the answer for the same files.

    Args:
        residency: Asks the kernel.
        path_text: Returns the path of a file.
        clock: Returns seconds, of whatever beginning.
    """

    def __init__(
        self,
        residency: Residency,
        path_text: Callable[[FileRecord], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._residency = residency
        self._path_text = path_text
        self._clock = clock
        self._records: tuple[FileRecord, ...] = ()
        self._found: int | None = None
        self._stands_until = float("-inf")

    async def of(self, records: Iterable[FileRecord]) -> int | None:
        """Bytes of these files that are in memory; None where the kernel does not say."""
        wanted = tuple(records)
        if wanted != self._records or self._clock() >= self._stands_until:
            began = self._clock()
            self._found = await self._residency.resident(map(self._path_text, wanted))
            self._records, ended = wanted, self._clock()
            taken = ended - began
            is_short = taken < SHORT_LOOK_SECONDS
            self._stands_until = float("-inf") if is_short else ended + taken / LOOK_SHARE
        return self._found
