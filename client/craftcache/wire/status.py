"""How the daemon is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from .activity import Coming, Disk, NotWarm, RecentModel, one_line
from .fields import TEXT_LIMITS, clipped
from .gpu import MAX_MODELS, GpuReport
from .record import AtMost, JsonRecord, PathText, read_record, record_fields, text, texts

if TYPE_CHECKING:
    from .fields import Fields

__all__ = ["DaemonStatus"]

MAX_VERSION = 128
"""Characters of the software's version."""

MAX_PLACE = 512
"""Characters of the Hub's address, and of where the token is."""

MAX_PROBLEMS = 16
"""In one report."""

MAX_PROBLEM = 1024
"""Characters of a problem; a longer one is clipped."""

MAX_GPUS = 16
"""In one report."""

MAX_LISTED = 16
"""Sources that come, that are not warm and that are, each; all of them are in the counts."""


@dataclass(frozen=True, slots=True)
class DaemonStatus(JsonRecord):
    """How the daemon is at one moment.

    Attributes:
        version: Version of its software.
        pid: Process id, in the daemon's PID namespace.
        started_at: Time of its start, in seconds since the epoch.
        cache_dir: Path of the cache directory.
        socket_dir: Path of the directory of its sockets.
        models: Number of cached models.
        bytes: Bytes of all cached models on the disk, each blob once; those of files that another
            daemon keeps and this one serves in place are not among them.
        requests: Number of different sources being fetched, verified or published.
        queued: Number of warms that are queued and not done.
        resident_bytes: Bytes of all cached models in memory, with thousands of them as seen some
            seconds ago; None where the kernel does not say.
        has_token: Whether it has a token for files of the Hub that are not public.
        watches: Number of watched directories by state.
        problems: What is wrong, and what to do about it; each in one line.
        coming: What is being brought, oldest first; 16 of ``requests`` at most.
        not_warm: What somebody wanted or had here and is not warm, newest first; 16 of
            ``not_warm_count`` at most.
        not_warm_count: Number of those.
        recent: The models that were used last, newest first; 16 of ``models`` at most.
        disk: The file system of the cache directory; None where it cannot be asked.
        max_bytes: The setting: bytes that all models together may take; 0 is no limit.
        quarantined: Number of files that turned out wrong and are kept for a look.
        quarantined_bytes: Bytes of them.
        hashed_since: Time since which every cached file has been hashed, in seconds since the
            epoch; None where nothing is cached, or the daemon has not looked yet.
        has_verity: Whether the file system of the cache has fs-verity, which the daemon uses then.
        processes: Number of processes that were handed models and still run.
        fallbacks: How often workers have told of loads without the daemon, by reason.
        token_place: Where it takes that token from, for people.
        hub_endpoint: The address of the Hub that it asks, without user and password.
        gpus: The services of GPUs that run beside the daemon, with the models that they hold; 64
            models of all together at most.
    """

    version: Annotated[str, text(MAX_VERSION)]
    pid: int
    started_at: float
    cache_dir: PathText
    socket_dir: PathText
    models: int
    bytes: int
    requests: int
    queued: int
    resident_bytes: int | None
    has_token: bool
    watches: Mapping[str, int]
    problems: Annotated[tuple[str, ...], texts(MAX_PROBLEMS, MAX_PROBLEM)] = ()
    coming: Annotated[tuple[Coming, ...], AtMost(MAX_LISTED)] = ()
    not_warm: Annotated[tuple[NotWarm, ...], AtMost(MAX_LISTED)] = ()
    not_warm_count: int = 0
    recent: Annotated[tuple[RecentModel, ...], AtMost(MAX_LISTED)] = ()
    disk: Disk | None = None
    max_bytes: int = 0
    quarantined: int = 0
    quarantined_bytes: int = 0
    hashed_since: float | None = None
    has_verity: bool = False
    processes: int = 0
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    token_place: Annotated[str, text(MAX_PLACE, empty=True)] = ""
    hub_endpoint: Annotated[str, text(MAX_PLACE, empty=True)] = ""
    gpus: Annotated[tuple[GpuReport, ...], AtMost(MAX_GPUS)] = ()

    TYPE: ClassVar[str] = "status_report"

    def to_document(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The status as a JSON object, its texts clipped to ``text_limit``."""
        limit = min(MAX_PROBLEM, text_limit)
        problems = [clipped(one_line(problem), limit) for problem in self.problems]
        return record_fields(self) | {
            "problems": problems[:MAX_PROBLEMS],
            "coming": [each.to_fields(text_limit) for each in self.coming[:MAX_LISTED]],
            "not_warm": [each.to_fields(text_limit) for each in self.not_warm[:MAX_LISTED]],
            "recent": [each.to_fields(text_limit) for each in self.recent[:MAX_LISTED]],
            "gpus": self._gpu_fields(text_limit),
        }

    def _gpu_fields(self, text_limit: int) -> list[dict[str, Any]]:
        gpus = self.gpus[:MAX_GPUS]
        each = MAX_MODELS // max(len(gpus), 1)
        return [gpu.with_models(each).to_fields(text_limit) for gpu in gpus]

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {"report": self.to_document(text_limit)}

    @classmethod
    def parse(cls, message: Fields) -> DaemonStatus:
        """The message with these keys."""
        return cls.of(message.child("report"))

    @classmethod
    def of(cls, fields: Fields) -> DaemonStatus:
        """The status with these keys; those that earlier releases do not send may be absent."""
        return read_record(cls, fields)
