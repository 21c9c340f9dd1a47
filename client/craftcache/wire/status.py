"""How the daemon is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .fields import MAX_PATH, clipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .fields import Fields

__all__ = ["DaemonStatus"]

MAX_VERSION = 128
"""Characters of the software's version."""

MAX_PROBLEMS = 16
"""In one report."""

MAX_PROBLEM = 1024
"""Characters of a problem; a longer one is clipped."""


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """How the daemon is at one moment.

    Attributes:
        version: Version of its software.
        pid: Process id, in the daemon's PID namespace.
        started_at: Time of its start, in seconds since the epoch.
        cache_dir: Path of the cache directory.
        socket_dir: Path of the directory of its sockets.
        models: Number of cached models.
        bytes: Bytes of all cached models on the disk, each blob once.
        requests: Number of different sources being fetched, verified or published.
        queued: Number of warms that are queued and not done.
        resident_bytes: Bytes of all cached models in memory; None where the kernel does not say.
        has_token: Whether it has a token for files of the Hub that are not public.
        watches: Number of watched directories by state.
        problems: The daemon's own directories that were removed and cannot be made anew, and why.
        quarantined: Number of files that turned out wrong and are kept for a look.
        quarantined_bytes: Bytes of them.
        hashed_since: Time since which every cached file has been hashed, in seconds since the
            epoch; None where nothing is cached, or the daemon has not looked yet.
        has_verity: Whether the file system of the cache has fs-verity, which the daemon uses then.
    """

    version: str
    pid: int
    started_at: float
    cache_dir: str
    socket_dir: str
    models: int
    bytes: int
    requests: int
    queued: int
    resident_bytes: int | None
    has_token: bool
    watches: Mapping[str, int]
    problems: tuple[str, ...] = ()
    quarantined: int = 0
    quarantined_bytes: int = 0
    hashed_since: float | None = None
    has_verity: bool = False

    TYPE: ClassVar[str] = "status_report"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        problems = [clipped(_line(problem), MAX_PROBLEM) for problem in self.problems]
        return {"report": asdict(self) | {"problems": problems[:MAX_PROBLEMS]}}

    @classmethod
    def parse(cls, message: Fields) -> DaemonStatus:
        """The message with these keys."""
        fields = message.child("report")
        watches = fields.child("watches")
        return cls(
            version=fields.text("version", MAX_VERSION),
            pid=fields.integer("pid"),
            started_at=fields.seconds("started_at"),
            cache_dir=fields.text("cache_dir", MAX_PATH),
            socket_dir=fields.text("socket_dir", MAX_PATH),
            models=fields.integer("models"),
            bytes=fields.integer("bytes"),
            requests=fields.integer("requests"),
            queued=fields.integer("queued"),
            resident_bytes=fields.optional_integer("resident_bytes"),
            has_token=fields.flag("has_token"),
            watches={state: watches.integer(state) for state in watches.whole},
            # Earlier releases tell of none.
            problems=()
            if fields.is_null("problems")
            else fields.texts("problems", MAX_PROBLEMS, MAX_PROBLEM),
            quarantined=fields.optional_integer("quarantined") or 0,
            quarantined_bytes=fields.optional_integer("quarantined_bytes") or 0,
            hashed_since=None if fields.is_null("hashed_since") else fields.seconds("hashed_since"),
            has_verity=fields.optional_flag("has_verity"),
        )


def _line(words: str) -> str:
    """Words in one line: they may name a path, which may hold anything."""
    return "".join(char if char.isprintable() else "?" for char in words)
