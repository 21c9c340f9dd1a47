"""The daemon's answers, and the progress that it reports before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from craftcache.cache.opened import OpenFile
from craftcache.file_maps import MAP_CHOICES

from .fields import (
    MAX_FILES,
    MAX_PATH,
    MAX_REVISION,
    MAX_SOURCE,
    MAX_WARM_SOURCES,
    TEXT_LIMITS,
    WireError,
    clipped,
)
from .gpu import GpuComparisons, GpuReport
from .models import ModelsPage, file_fields, parse_file
from .record import Filename, JsonRecord, text
from .status import DaemonStatus
from .watching import Generation, Identified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from craftcache.cache.opened import FileInfo, ServedBy
    from craftcache.errors import CraftcacheError
    from craftcache.file_maps import MapChoice

    from .fields import Fields

__all__ = [
    "State",
    "Progress",
    "Loaded",
    "Resolved",
    "WarmedModel",
    "WarmedBatch",
    "Answer",
    "Problem",
]

State: TypeAlias = Literal[
    "queued",
    "fetching",
    "verifying",
    "inspecting",
    "publishing",
    "reading",
    "done",
    "failed",
]

MAX_MAP = 16

_MAPS: dict[str, MapChoice] = {choice: choice for choice in MAP_CHOICES}

MAX_NOT_REFRESHED = 8
"""Names of dependencies in one result, so that any number of results fits into a message."""


@dataclass(frozen=True, slots=True)
class Progress(JsonRecord):
    """The progress of a request.

    Attributes:
        source: The source that is worked on; empty where the request names none.
        file: The file inside it, or None where the source as a whole is meant.
        done: Bytes done in this state.
        total: Bytes in all, or None where that is not known.
        state: State of the work.
    """

    source: Annotated[str, text(MAX_SOURCE, empty=True)]
    file: Filename | None
    done: int
    total: int | None
    state: State

    TYPE: ClassVar[str] = "progress"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Files of one revision of a source, open for reading; a context manager that closes them.

    A Loaded that is dropped without a close leaves no file open: each file closes itself.

    Attributes:
        source: As it was asked for; of the daemon's answer without what may be secret in it.
        revision: The revision that is served; of a URL or a watch a digest over its files; empty
            of local files.
        files: In the order in which they were asked for.
        served_by: Server of the files: ``daemon``, ``cache``, ``origin`` or ``local``.
        fallback_reason: Why the daemon did not serve them; None where it did or was not asked.
        map: Whether workers are to map the files: ``auto``, ``always`` or ``never``.
    """

    source: str
    revision: str
    files: tuple[OpenFile, ...]
    served_by: ServedBy = "daemon"
    fallback_reason: str | None = None
    map: MapChoice = "auto"

    TYPE: ClassVar[str] = "loaded"

    @property
    def descriptors(self) -> list[int]:
        """What comes with the message: for each file its descriptor, then, where it has them, those
        of its index and of its lease.
        """
        return [descriptor for file in self.files for descriptor in file.descriptors]

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type, origins clipped to ``text_limit``."""
        fields = {
            "source": clipped(self.source, MAX_SOURCE),
            "revision": self.revision,
            "files": [
                file_fields(file.info, text_limit, has_index=file.index is not None)
                | ({} if file.memory_bytes is None else {"memory": file.memory_bytes})
                for file in self.files
            ],
        }
        return fields if self.map == "auto" else {**fields, "map": self.map}

    @classmethod
    def parse(cls, fields: Fields, descriptors: Sequence[int] = ()) -> Loaded:
        """The message with these keys, which owns ``descriptors`` from now on.

        Raises:
            WireError: It is malformed, or other descriptors came than it says. They are still the
                caller's to close.
        """
        source = fields.text("source", MAX_SOURCE)
        revision = fields.text("revision", MAX_REVISION)
        wanted = fields.optional_text("map", MAX_MAP)
        infos: list[tuple[FileInfo, bool, int | None]] = []
        expected = 0
        for file in fields.children("files", MAX_FILES):
            info, has_index = parse_file(file), file.flag("has_index")
            memory = file.optional_integer("memory")
            if memory is not None and memory < info.size:
                raise WireError("'memory' is less than a file's size")
            infos.append((info, has_index, memory))
            expected += 1 + has_index + (memory is not None)
        if len(descriptors) != expected:
            raise WireError(f"{len(descriptors)} descriptors came where {expected} should have")
        # From here on nothing fails: each descriptor gets its owner.
        each = iter(descriptors)
        opened = [
            OpenFile(
                info,
                next(each),
                next(each) if has_index else None,
                memory_bytes=memory,
                lease=None if memory is None else next(each),
            )
            for info, has_index, memory in infos
        ]
        return cls(source, revision, tuple(opened), map=_MAPS.get(wanted or "", MAP_CHOICES[0]))

    def close(self) -> None:
        """Close all files; maps and tensors made from them stay valid."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a file is.

    Attributes:
        path: Relative to the cache directory, which worker and daemon may have mounted at
            different places; never climbs out of it.
        device: ``st_dev`` of the file that it leads to, so that the worker can tell whether it
            sees the same file.
        inode: ``st_ino`` of the file.
    """

    path: str
    device: int
    inode: int

    TYPE: ClassVar[str] = "resolved"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {"path": self.path, "device": self.device, "inode": self.inode}

    @classmethod
    def parse(cls, fields: Fields) -> Resolved:
        """The message with these keys."""
        path = fields.text("path", MAX_PATH)
        if any(segment in {"", ".", ".."} for segment in path.split("/")):
            raise WireError("'path' is no path below the cache directory")
        return cls(path, fields.integer("device"), fields.integer("inode"))


@dataclass(frozen=True, slots=True)
class WarmedModel:
    """A source that was brought up to date.

    Attributes:
        source: The source as shown to people. Not on the wire: an answer is for its request.
        revision: The one that is served from now on.
        bytes_fetched: Bytes of its own files that came over the network.
        bytes_reused: Bytes of its own files that were in the cache before, in whatever form.
        served_by: ``daemon``, or, without it, ``origin`` where this process fetched it by itself
            and ``cache`` where it found it.
        resident_bytes: Bytes of its files in memory; None where that was not asked for, or is
            not known.
        not_refreshed: Dependencies that are cached, and whose origin could not be asked for a
            newer revision.
        held_until: Time until which it is not evicted, in seconds since the epoch; None where it
            is not held.
    """

    source: str
    revision: str
    bytes_fetched: int = 0
    bytes_reused: int = 0
    served_by: ServedBy = "daemon"
    resident_bytes: int | None = None
    not_refreshed: tuple[str, ...] = ()
    held_until: float | None = None

    TYPE: ClassVar[str] = "warmed"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {"results": [self.to_result()]}

    def to_result(self) -> dict[str, Any]:
        """What the message says of one source."""
        return {
            "revision": self.revision,
            "bytes_fetched": self.bytes_fetched,
            "bytes_reused": self.bytes_reused,
            "resident_bytes": self.resident_bytes,
            "not_refreshed": [
                clipped(name, TEXT_LIMITS[-1]) for name in self.not_refreshed[:MAX_NOT_REFRESHED]
            ],
            "held_until": self.held_until,
        }

    @classmethod
    def parse(cls, fields: Fields) -> WarmedModel | Problem:
        """The message with these keys, about one source; its result may be a problem."""
        results = list(fields.children("results", MAX_WARM_SOURCES))
        if len(results) != 1:
            raise WireError("'results' are not those of one source")
        [result] = results
        if not result.is_null("problem"):
            return Problem(result.child("problem").error())
        return cls(
            source="",
            revision=result.text("revision", MAX_REVISION),
            bytes_fetched=result.integer("bytes_fetched"),
            bytes_reused=result.integer("bytes_reused"),
            resident_bytes=result.optional_integer("resident_bytes"),
            not_refreshed=()
            if result.is_null("not_refreshed")
            else result.texts("not_refreshed", MAX_NOT_REFRESHED, MAX_SOURCE),
            held_until=result.optional_seconds("held_until"),
        )


@dataclass(frozen=True, slots=True)
class WarmedBatch:
    """What became of each source of a message that names several, in its order."""

    results: tuple[WarmedModel | CraftcacheError, ...]

    TYPE: ClassVar[str] = "warmed"

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type, texts of problems clipped to ``text_limit``."""
        return {
            "results": [
                result.to_result()
                if isinstance(result, WarmedModel)
                else {"problem": _problem(result, text_limit)}
                for result in self.results
            ]
        }


@dataclass(frozen=True, slots=True)
class Problem:
    """The answer to a request that failed.

    Attributes:
        error: The error.
        own_fault: Whether the daemon itself failed or is overloaded, so that the worker may get the
            same files without it.
    """

    error: CraftcacheError
    own_fault: bool = False

    TYPE: ClassVar[str] = "problem"

    @classmethod
    def of(cls, error: CraftcacheError) -> Problem:
        """A daemon's answer where ``error`` ended a request; see the table in craftcache.errors."""
        return cls(error, own_fault=error.blame in ("daemon", "process"))

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message as a JSON object, texts clipped to ``text_limit``."""
        return {"problem": _problem(self.error, text_limit), "own_fault": self.own_fault}

    @classmethod
    def parse(cls, fields: Fields) -> Problem:
        """The message with these keys."""
        return cls(fields.child("problem").error(), fields.flag("own_fault"))


Answer: TypeAlias = (
    Loaded
    | Resolved
    | WarmedModel
    | DaemonStatus
    | ModelsPage
    | Identified
    | Generation
    | GpuReport
    | GpuComparisons
)


def _problem(error: CraftcacheError, text_limit: int) -> dict[str, Any]:
    problem = error.to_problem()
    for key in ("detail", "hint", "source"):
        if key in problem:
            problem[key] = clipped(problem[key], text_limit)
    return problem
