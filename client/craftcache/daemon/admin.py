"""The client of the daemon's HTTP interface, for people's and administrators' requests.

It has a method for each request of that interface. Workers do not need it; they use the worker
socket through craftcache.Client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from craftcache.errors import Unavailable
from craftcache.sources import check_watch_name
from craftcache.wire import GpuComparison, NotWarm, Progress
from craftcache.wire.record import JsonRecord

from .activity import Activity
from .admin_transport import STEP_SECONDS, AdminTransport
from .administration import (
    Eviction,
    ImportedModel,
    Pruning,
    QuarantinedFile,
    QueuedWarm,
    Removal,
    Verdict,
    Verification,
    WatchList,
    WatchReport,
    option_fields,
)
from .events import EventStream
from .planning import WarmPlan
from .processes import ModelProcess
from .room import RoomReport, UserReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from craftcache.watch_rule import WatchRule
    from craftcache.wire import WarmOptions
    from craftcache.wire.fields import Fields

    from .events import DaemonEvent

__all__ = ["AdminClient"]

RecordT = TypeVar("RecordT", bound=JsonRecord)

MAX_ITEMS = 1_000_000
"""Items of a list in an answer."""

MAX_EVENT = 64
"""Characters of an event's name."""

PLAN_SECONDS = 300.0
"""Timeout of asking the Hub about hundreds of files."""

IMPORT_SECONDS = 6 * 3600.0
"""Timeout of importing a bundle, all of which is hashed and written."""

UPLOAD_BYTES = 1024 * 1024
"""Bytes of a bundle that are read and sent at once."""

LOCK_SECONDS = 1800.0
"""Timeout of locking a model in memory, all of which is read from the disk for that."""


class AdminClient:
    """Asks the daemon over ``<socket_dir>/craftcache.sock``; opens one connection a request.

    Args:
        socket_dir: Directory of the daemon's sockets; None on a machine without a daemon.
    """

    def __init__(self, socket_dir: Path | None) -> None:
        self._transport = AdminTransport(socket_dir)

    def remove(self, source: str) -> Removal:
        """Remove a model from the cache; of one that is listed as not warm, the entry goes.

        Raises:
            NotFound: It is not in the cache, nor listed as not warm.
            PolicyDenied: It is pinned, or this user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._transport.request("DELETE", f"/v1/models/{quote(source, safe='')}")
        return Removal.parse(answer)

    def pin(
        self, source: str, *, lock: bool = False, expires_in: float | None = None
    ) -> float | None:
        """Keep a model of the cache from being evicted and removed.

        Args:
            source: The source to keep, at whatever revision.
            lock: Whether to keep it in memory too; returns when all of it is there.
            expires_in: Seconds after which the pin ends by itself; None for never.

        Returns:
            Time at which the pin ends by itself, in seconds since the epoch; None for never.

        Raises:
            NotFound: It is not in the cache.
            PolicyDenied: It is more than the daemon may lock, or this user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        path = f"/v1/pins/{quote(source, safe='')}"
        body = {"lock": lock, "expires_in": expires_in}
        answer = self._transport.request("PUT", path, body, seconds=LOCK_SECONDS)
        if answer.is_null("expires_at"):
            return None
        return answer.moment("expires_at").timestamp()

    def unpin(self, source: str) -> None:
        """Allow a pinned model to be evicted and removed again.

        Raises:
            NotFound: It is not pinned.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        self._transport.request("DELETE", f"/v1/pins/{quote(source, safe='')}")

    def evict(self, wanted: int | None = None, *, dry_run: bool = False) -> Eviction:
        """Remove the models that were not used for longest, and are neither pinned nor in use.

        Args:
            wanted: Bytes to free; None stands for the bytes beyond the daemon's max_bytes.
            dry_run: Whether nothing is removed, and the answer says what would be.

        Raises:
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._transport.request("POST", "/v1/evict", {"bytes": wanted, "dry_run": dry_run})
        return Eviction.parse(answer)

    def prune(self, filters: Sequence[str], *, dry_run: bool = False) -> Pruning:
        """Remove the models that all filters mean, and that nothing needs, uses, pins or holds.

        Args:
            filters: See craftcache.model_filter; one at least.
            dry_run: Whether nothing is removed, and the answer says what would be.

        Raises:
            InvalidSource: One of the filters is none.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        body = {"filters": list(filters), "dry_run": dry_run}
        return Pruning.parse(self._transport.request("POST", "/v1/prune", body))

    def verify(
        self,
        sources: Sequence[str] = (),
        *,
        report: Callable[[Progress], None] = lambda _: None,
        tell: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> list[Verdict]:
        """Hash cached files again; wrong ones go to quarantine and are fetched anew.

        The daemon goes on with it though this caller goes; who asks for the same meanwhile joins.

        Args:
            sources: Sources of the models; none stands for all models.
            report: Called with progress.
            tell: Called with each event as the daemon says it: progress, results and the end.

        Returns:
            The verdicts, in the order in which they were found.

        Raises:
            NotFound: One of them is not in the cache; no file was hashed.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached, or ended meanwhile.
        """
        verdicts = []
        for event in self._transport.events("POST", "/v1/verify", {"sources": list(sources)}):
            tell(event.whole)
            match event.text("event", MAX_EVENT):
                case "progress":
                    report(Progress.parse(event))
                case "result":
                    verdicts.append(Verdict.parse(event))
                case "done":
                    if failure := Verification.parse(event).failure:
                        raise failure
                    return verdicts
        raise Unavailable("the daemon ended in the middle of it", hint="Ask again", retryable=True)

    def verify_gpus(self) -> list[GpuComparison]:
        """Compare what is in the memory of the node's GPUs with what was verified.

        Raises:
            NotFound: No GPU has a service.
            PolicyDenied: This user is no administrator.
            Unavailable: A service does not answer, or the daemon cannot be reached.
        """
        answer = self._transport.request("POST", "/v1/gpus/verify", seconds=STEP_SECONDS)
        return [GpuComparison.parse(each) for each in answer.children("results", MAX_ITEMS)]

    def start_verifying(self, sources: Sequence[str] = ()) -> Verification:
        """Have the daemon verify by itself, without waiting for it; see verify."""
        body = {"sources": list(sources), "wait": False}
        return Verification.parse(self._transport.request("POST", "/v1/verify", body))

    def verifications(self) -> list[Verification]:
        """The verifications that run, and the last ones that have ended, oldest first.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return _listed(self._transport.request("GET", "/v1/verify"), "verifications", Verification)

    def quarantined(self) -> list[QuarantinedFile]:
        """What turned out wrong and is kept for a look, the oldest first.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return _listed(self._transport.request("GET", "/v1/quarantine"), "files", QuarantinedFile)

    def remove_quarantined(self, name: str) -> int:
        """Remove a file from the quarantine for good; returns the bytes freed.

        Raises:
            NotFound: There is none of that name.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._transport.request("DELETE", f"/v1/quarantine/{quote(name, safe='')}")
        return answer.integer("freed_bytes")

    def room(self) -> RoomReport:
        """The room of the cache, and what takes it.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return RoomReport.parse(self._transport.request("GET", "/v1/room"))

    def users(self) -> list[UserReport]:
        """What each user has of the daemon, and has held.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return _listed(self._transport.request("GET", "/v1/users"), "users", UserReport)

    def queue_warm(self, sources: Sequence[str], options: WarmOptions) -> list[QueuedWarm]:
        """Have the daemon warm ``sources`` by itself, without waiting for it.

        Args:
            sources: Sources to warm.
            options: Options of the warms.

        Raises:
            InvalidSource: A source or filename is malformed; nothing was queued.
            Unavailable: The daemon cannot be reached.
        """
        body = {"sources": list(sources), **option_fields(options), "wait": False}
        answer = self._transport.request("POST", "/v1/warm", body)
        return _listed(answer, "jobs", QueuedWarm)

    def plan(self, sources: Sequence[str], options: WarmOptions) -> WarmPlan:
        """What a warm of ``sources`` would take: bytes, room, tensors and time. Fetches nothing.

        Args:
            sources: Sources that would be warmed.
            options: Options of the warms.

        Raises:
            CraftcacheError: Any that the warm of one of them would raise before its first byte.
            Unavailable: The daemon cannot be reached.
        """
        body = {"sources": list(sources), **option_fields(options)}
        return WarmPlan.parse(
            self._transport.request("POST", "/v1/plan", body, seconds=PLAN_SECONDS)
        )

    def queued_warms(self) -> list[QueuedWarm]:
        """The warms that are queued and not done yet, oldest first.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return _listed(self._transport.request("GET", "/v1/warm"), "jobs", QueuedWarm)

    def withdraw_warm(self, number: int) -> QueuedWarm:
        """Have the daemon not do a queued warm; what came of it already is kept for the next one.

        Raises:
            NotFound: None of that number is queued, or it is done.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._transport.request("DELETE", f"/v1/warm/{number}")
        return QueuedWarm.parse(answer)

    def import_bundle(self, file: Path) -> list[ImportedModel]:
        """Send a bundle to the daemon, which verifies and publishes its models.

        Args:
            file: The bundle, as ``craftcache bundle create`` wrote it.

        Raises:
            IntegrityError: It is damaged; nothing was imported.
            UnsafeCheckpoint: Loading one of its files would run code; nothing was imported.
            PolicyDenied: The settings do not allow one of its models, or this user is no
                administrator.
            StorageFull: There is no room for it.
            Unavailable: The daemon cannot be reached.
            OSError: The file cannot be read.
        """
        with file.open("rb") as stream:
            chunks = iter(lambda: stream.read(UPLOAD_BYTES), b"")
            answer = self._transport.request(
                "POST", "/v1/bundles", content=chunks, seconds=IMPORT_SECONDS
            )
        return _listed(answer, "models", ImportedModel)

    def events(self, since: int | None = None) -> Iterator[DaemonEvent]:
        """Yield what happens in the daemon; goes on after its restart, and says what was missed.

        Args:
            since: Number of an event, after which to begin; 0 begins with the oldest that the
                daemon has kept, None with what happens from now on.

        Raises:
            PolicyDenied: This user may not connect.
            Unavailable: The daemon cannot be reached.
        """
        return EventStream(self._transport.socket).read(since)

    def async_events(self, since: int | None = None) -> AsyncIterator[DaemonEvent]:
        """See ``events``; for asyncio."""
        return EventStream(self._transport.socket).aread(since)

    def activity(self) -> Activity:
        """What the daemon does at this moment, and its counters; costs it next to nothing.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return Activity.parse(self._transport.request("GET", "/v1/activity"))

    def not_warm(self) -> list[NotWarm]:
        """All that somebody wanted or had here and is not warm, and why; newest first.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return _listed(self._transport.request("GET", "/v1/not_warm"), "not_warm", NotWarm)

    def processes(self) -> list[ModelProcess]:
        """The running processes that were handed models, or wait for some.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return _listed(self._transport.request("GET", "/v1/processes"), "processes", ModelProcess)

    def put_watch(self, rule: WatchRule) -> None:
        """Watch a directory, or change how it is watched.

        Raises:
            InvalidSource: The daemon cannot watch it so.
            PolicyDenied: The settings have a watch of that name, or this user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        self._transport.request("PUT", f"/v1/watches/{rule.name}", rule.to_fields())

    def watches(self) -> WatchList:
        """What is watched, and how it is.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return WatchList.parse(self._transport.request("GET", "/v1/watches"))

    def remove_watch(self, name: str) -> int:
        """Watch a directory no more and remove its generations; returns the bytes freed.

        Raises:
            NotFound: There is no such watch.
            PolicyDenied: It stands in the settings, or this user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._transport.request("DELETE", f"/v1/watches/{check_watch_name(name)}")
        return answer.integer("freed_bytes")

    def roll_back_watch(self, name: str, number: int | None) -> WatchReport:
        """Serve an earlier generation, by default the one before; returns how the watch is.

        Raises:
            NotFound: There is no such watch, or generation.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        body = {} if number is None else {"generation": number}
        path = f"/v1/watches/{check_watch_name(name)}/rollback"
        return WatchReport.parse(self._transport.request("POST", path, body))

    def resume_watch(self, name: str) -> WatchReport:
        """Serve the newest generation again; returns how the watch is.

        Raises:
            NotFound: There is no such watch.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        path = f"/v1/watches/{check_watch_name(name)}/resume"
        return WatchReport.parse(self._transport.request("POST", path))


def _listed(answer: Fields, key: str, of: type[RecordT]) -> list[RecordT]:
    return list(map(of.parse, answer.children(key, MAX_ITEMS)))
