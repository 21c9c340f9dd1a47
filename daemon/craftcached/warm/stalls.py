"""What a request still waits for from its origin, and whether any of it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craftcache.wire import Progress

__all__ = ["StallDetector"]


class StallDetector:
    """The files of one request that are on their way, by the progress that it is told.

    A request that waits for no origin, because it hashes, inspects or publishes what it has, is
    never stalled: such work ends by itself.
    """

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes: dict[str | None, int] = {}

    def heard(self, progress: Progress) -> None:
        """Note how far one file has come."""
        if progress.state == "fetching" and progress.done != progress.total:
            self._bytes[progress.file] = progress.done
        else:
            self._bytes.pop(progress.file, None)

    def snapshot(self) -> Mapping[str | None, int]:
        """How much has come of each file that is on its way."""
        return dict(self._bytes)

    def has_stalled(self, since: Mapping[str | None, int]) -> bool:
        """Whether something is waited for and nothing has come of anything since a snapshot."""
        return bool(self._bytes) and self._bytes == since
