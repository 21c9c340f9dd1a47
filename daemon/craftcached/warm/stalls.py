"""Detection of stalls: whether the downloads that a request waits for still progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from craftcache.wire import Progress

__all__ = ["StallDetector"]


class StallDetector:
    """The bytes received of each file that one request is downloading, from reported progress.

    A request that downloads nothing, because it hashes, inspects or publishes, is never stalled:
    such work ends by itself.
    """

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes: dict[str | None, int] = {}

    def heard(self, progress: Progress) -> None:
        """Note the progress of one file."""
        if progress.state == "fetching" and progress.done != progress.total:
            self._bytes[progress.file] = progress.done
        else:
            self._bytes.pop(progress.file, None)

    def snapshot(self) -> Mapping[str | None, int]:
        """Bytes received of each file that is being downloaded, by name."""
        return dict(self._bytes)

    def has_stalled(self, since: Mapping[str | None, int]) -> bool:
        """Whether a download is under way and no byte of any has come since a snapshot."""
        return bool(self._bytes) and self._bytes == since
