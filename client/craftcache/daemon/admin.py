"""The daemon's HTTP interface as a program uses it: what is for people and administrators.

Workers need none of this; they speak to the worker socket by craftcache.Client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from craftcache.errors import CraftcacheError, PolicyDenied, Unavailable, from_problem
from craftcache.sources import check_watch_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import httpx

    from craftcache.watch_rule import WatchRule

__all__ = ["AdminClient", "Eviction", "KeptModel", "QueuedWarm", "VerifiedFile"]

SOCKET_NAME = "craftcache.sock"

CONNECT_SECONDS = 5.0

ANSWER_SECONDS = 60.0
"""For what at most unlinks files of many gigabytes."""

VERIFY_SECONDS = 6 * 3600.0
"""For hashing a whole cache, which reads all of it from the disk."""

LOCK_SECONDS = 1800.0
"""For locking a model in memory, all of which is read from the disk for that."""


@dataclass(frozen=True, slots=True)
class QueuedWarm:
    """A warm that the daemon has promised; it outlives the request and a restart.

    Attributes:
        id: The daemon's number for it.
        source: As shown to people.
    """

    id: int
    source: str


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A model that was not evicted though room is missing, and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Eviction:
    """What an eviction did, or, of a dry run, would do.

    Attributes:
        removed: Sources of the models, as shown to people.
        freed_bytes: On the disk.
        missing_bytes: That were wanted and could not be freed.
        kept: Why not, where any are missing.
    """

    removed: tuple[str, ...]
    freed_bytes: int
    missing_bytes: int
    kept: tuple[KeptModel, ...]


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """What was found of a cached file when it was hashed again.

    Attributes:
        source: The model, as shown to people.
        filename: Inside it.
        sha256: That it was published with.
        outcome: ``right``, ``wrong`` or ``missing``.
        quarantined: Where a wrong one is now, below the cache directory; else None.
    """

    source: str
    filename: str
    sha256: str
    outcome: str
    quarantined: str | None


class AdminClient:
    """Asks the daemon over ``<socket_dir>/craftcache.sock``; one connection a request.

    Args:
        socket_dir: Where the daemon's sockets are; None on a machine that has none.
    """

    def __init__(self, socket_dir: Path | None) -> None:
        self._socket_dir = socket_dir

    def remove(self, source: str) -> int:
        """Remove a model from the cache; returns the bytes freed.

        Raises:
            NotFound: It is not in the cache.
            PolicyDenied: It is pinned, or this user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._request("DELETE", f"/v1/models/{quote(source, safe='')}")
        return int(answer["freed_bytes"])

    def pin(self, source: str, *, lock: bool = False) -> None:
        """Keep a model of the cache from being evicted and removed.

        Args:
            source: What to keep, at whatever revision.
            lock: Whether to keep it in memory too; returns when all of it is there.

        Raises:
            NotFound: It is not in the cache.
            PolicyDenied: It is more than the daemon may lock, or this user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        path = f"/v1/pins/{quote(source, safe='')}"
        self._request("PUT", path, {"lock": lock}, seconds=LOCK_SECONDS)

    def unpin(self, source: str) -> None:
        """Let a model be evicted and removed again.

        Raises:
            NotFound: It is not pinned.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        self._request("DELETE", f"/v1/pins/{quote(source, safe='')}")

    def evict(self, wanted: int | None = None, *, dry_run: bool = False) -> Eviction:
        """Remove the models that were not used for longest, and are neither pinned nor in use.

        Args:
            wanted: Bytes to free; None stands for what is beyond the daemon's limit.
            dry_run: Only say what would be removed.

        Raises:
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._request("POST", "/v1/evict", {"bytes": wanted, "dry_run": dry_run})
        return Eviction(
            tuple(answer["removed"]),
            answer["freed_bytes"],
            answer["missing_bytes"],
            tuple(KeptModel(kept["source"], kept["reason"]) for kept in answer["kept"]),
        )

    def verify(self, sources: Sequence[str] = ()) -> list[VerifiedFile]:
        """Hash what is cached again; what is wrong is put aside and fetched anew when next wanted.

        Args:
            sources: Of the models; none stands for all.

        Raises:
            NotFound: One of them is not in the cache; none was looked at.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        body = {"sources": list(sources)}
        answer = self._request("POST", "/v1/verify", body, seconds=VERIFY_SECONDS)
        return [
            VerifiedFile(
                file["source"],
                file["filename"],
                file["sha256"],
                file["outcome"],
                file["quarantined"],
            )
            for file in answer["results"]
        ]

    def queue_warm(
        self,
        sources: Sequence[str],
        filenames: Sequence[str],
        *,
        resident: bool = False,
        pair_only: bool = False,
    ) -> list[QueuedWarm]:
        """Have the daemon warm ``sources`` by itself, without waiting for it.

        Args:
            sources: What to warm.
            filenames: Files of each; none stands for the export's pair.
            resident: Whether to bring them into memory too.
            pair_only: Whether to leave out what they need.

        Raises:
            InvalidSource: A source or filename is malformed; nothing was queued.
            Unavailable: The daemon cannot be reached.
        """
        body = {
            "sources": list(sources),
            "files": list(filenames),
            "resident": resident,
            "pair_only": pair_only,
            "wait": False,
        }
        answer = self._request("POST", "/v1/warm", body)
        return [QueuedWarm(job["id"], job["source"]) for job in answer["jobs"]]

    def queued_warms(self) -> dict[str, Any]:
        """The warms that are promised and not done yet: the daemon's document, with ``jobs``.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return self._request("GET", "/v1/warm")

    def withdraw_warm(self, number: int) -> QueuedWarm:
        """Have the daemon not do a queued warm; what came of it already is kept for the next one.

        Raises:
            NotFound: None of that number is queued, or it is done.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._request("DELETE", f"/v1/warm/{number}")
        return QueuedWarm(answer["id"], answer["source"])

    def put_watch(self, rule: WatchRule) -> None:
        """Watch a directory, or change how it is watched.

        Raises:
            InvalidSource: The daemon cannot watch it so.
            PolicyDenied: The settings have a watch of that name, or this user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        self._request("PUT", f"/v1/watches/{rule.name}", rule.to_fields())

    def watches(self) -> dict[str, Any]:
        """What is watched: the daemon's document, with ``watches`` and ``patterns``.

        Raises:
            Unavailable: The daemon cannot be reached.
        """
        return self._request("GET", "/v1/watches")

    def remove_watch(self, name: str) -> int:
        """Watch a directory no more and remove its generations; returns the bytes freed.

        Raises:
            NotFound: There is no such watch.
            PolicyDenied: It stands in the settings, or this user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        answer = self._request("DELETE", f"/v1/watches/{check_watch_name(name)}")
        return int(answer["freed_bytes"])

    def roll_back_watch(self, name: str, number: int | None) -> dict[str, Any]:
        """Serve an earlier generation, by default the one before; returns how the watch is.

        Raises:
            NotFound: There is no such watch, or generation.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        body = {} if number is None else {"generation": number}
        return self._request("POST", f"/v1/watches/{check_watch_name(name)}/rollback", body)

    def resume_watch(self, name: str) -> dict[str, Any]:
        """Serve the newest generation again; returns how the watch is.

        Raises:
            NotFound: There is no such watch.
            PolicyDenied: This user is no administrator.
            Unavailable: The daemon cannot be reached.
        """
        return self._request("POST", f"/v1/watches/{check_watch_name(name)}/resume")

    def _request(
        self, method: str, path: str, body: object = None, *, seconds: float = ANSWER_SECONDS
    ) -> dict[str, Any]:
        import httpx

        socket = self._socket()
        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        transport = httpx.HTTPTransport(uds=str(socket))
        try:
            with httpx.Client(transport=transport, timeout=timeout) as client:
                response = client.request(method, f"http://craftcached{path}", json=body)
        except httpx.TransportError as error:
            raise _connection_error(error, socket) from error
        return _answer(response)

    def _socket(self) -> Path:
        if self._socket_dir is None:
            raise Unavailable(
                "this machine has no socket directory of a daemon",
                hint="Start craftcached, or name its directory by --socket-dir or "
                "CRAFTCACHE_SOCKET_DIR",
            )
        return self._socket_dir / SOCKET_NAME


def _answer(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unavailable(
            f"the daemon answers {response.status_code} without JSON",
            hint="Is something else listening on its socket?",
        )
    if response.is_success:
        return answer
    if "code" in answer:
        raise from_problem(answer)
    raise CraftcacheError(
        f"the daemon answers {response.status_code} {answer.get('title', '')}".rstrip(),
        hint="Are craftcache and craftcached of the same release?",
    )


def _connection_error(error: httpx.TransportError, socket: Path) -> CraftcacheError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PermissionError):
            return PolicyDenied(
                f"this user may not use {socket}", hint="Ask root, or join the socket's group"
            )
        cause = cause.__cause__ or cause.__context__
    return Unavailable(
        f"the daemon cannot be reached at {socket} ({error})",
        hint="Is craftcached running? systemctl status craftcached says so",
    )
