"""What the daemon answers, and what it says until then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from .fields import (
    MAX_FILENAME,
    MAX_FILES,
    MAX_PATH,
    MAX_REVISION,
    MAX_SOURCE,
    MAX_WARM_SOURCES,
    TEXT_LIMITS,
    WireError,
    clipped,
)
from .models import ModelsPage, ServedFile
from .watching import Generation, Identified

if TYPE_CHECKING:
    from craftcache.errors import CraftcacheError

    from .fields import Fields

__all__ = [
    "State",
    "Progress",
    "WarmResult",
    "Loaded",
    "Resolved",
    "Warmed",
    "StatusReport",
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

_STATES: dict[str, State] = {
    "queued": "queued",
    "fetching": "fetching",
    "verifying": "verifying",
    "inspecting": "inspecting",
    "publishing": "publishing",
    "reading": "reading",
    "done": "done",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request has come.

    Attributes:
        source: The source that is worked on; empty where the request names none.
        file: The file inside it, or None where the source as a whole is meant.
        done: Bytes done in this state.
        total: Bytes in all, or None where that is not known.
        state: What is being done.
    """

    source: str
    file: str | None
    done: int
    total: int | None
    state: State

    TYPE: ClassVar[str] = "progress"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {
            "source": self.source,
            "file": self.file,
            "done": self.done,
            "total": self.total,
            "state": self.state,
        }

    @classmethod
    def parse(cls, fields: Fields) -> Progress:
        """The message with these keys."""
        state = _STATES.get(fields.text("state", 32))
        if state is None:
            raise WireError("'state' is no state")
        return cls(
            source=fields.text("source", MAX_SOURCE, empty=True),
            file=None if fields.is_null("file") else fields.text("file", MAX_FILENAME),
            done=fields.integer("done"),
            total=None if fields.is_null("total") else fields.integer("total"),
            state=state,
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """The files of a source, whose descriptors come with this message.

    Attributes:
        source: The source that was asked for.
        revision: The revision that is served.
        files: In the order of the request; of an export, of ``craftcache.sources.FILENAMES``.
    """

    source: str
    revision: str
    files: tuple[ServedFile, ...]

    TYPE: ClassVar[str] = "loaded"

    @property
    def descriptor_count(self) -> int:
        """How many descriptors come with the message: each file's blob and, if any, index."""
        return sum(2 if file.has_index else 1 for file in self.files)

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type, origins clipped to ``text_limit``."""
        return {
            "source": self.source,
            "revision": self.revision,
            "files": [file.to_fields(text_limit) for file in self.files],
        }

    @classmethod
    def parse(cls, fields: Fields) -> Loaded:
        """The message with these keys."""
        return cls(
            source=fields.text("source", MAX_SOURCE),
            revision=fields.text("revision", MAX_REVISION),
            files=_files(fields),
        )


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a file is.

    Attributes:
        path: Relative to the cache directory, which worker and daemon may have mounted at
            different places; never climbs out of it.
        device: ``st_dev`` of the file that it leads to, so that the worker can tell whether it
            sees the same file.
        inode: Its ``st_ino``.
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
class WarmResult:
    """What became of one source of a ``warm``: a revision, or the error that prevented one.

    Attributes:
        revision: That is served from now on; None with an error.
        error: Why there is none.
        bytes_fetched: That came over the network for it.
        bytes_reused: That were in the cache before.
        resident_bytes: Of its files, that are in memory; None where that was not asked for, or
            is not known.
    """

    revision: str | None = None
    error: CraftcacheError | None = None
    bytes_fetched: int = 0
    bytes_reused: int = 0
    resident_bytes: int | None = None

    @classmethod
    def parse(cls, fields: Fields) -> WarmResult:
        """The result with these keys."""
        if fields.is_null("problem"):
            return cls(
                revision=fields.text("revision", MAX_REVISION),
                bytes_fetched=fields.integer("bytes_fetched"),
                bytes_reused=fields.integer("bytes_reused"),
                resident_bytes=fields.optional_integer("resident_bytes"),
            )
        return cls(error=fields.child("problem").error())


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of each source of a ``warm``, in the order of the request."""

    results: tuple[WarmResult, ...]

    TYPE: ClassVar[str] = "warmed"

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message as a JSON object, texts of problems clipped to ``text_limit``."""
        return {
            "results": [
                {
                    "revision": result.revision,
                    "bytes_fetched": result.bytes_fetched,
                    "bytes_reused": result.bytes_reused,
                    "resident_bytes": result.resident_bytes,
                }
                if result.error is None
                else {"problem": _problem(result.error, text_limit)}
                for result in self.results
            ]
        }

    @classmethod
    def parse(cls, fields: Fields) -> Warmed:
        """The message with these keys."""
        return cls(tuple(map(WarmResult.parse, fields.children("results", MAX_WARM_SOURCES))))


@dataclass(frozen=True, slots=True)
class StatusReport:
    """How the daemon is, as a JSON object whose keys may grow from release to release."""

    report: dict[str, Any]

    TYPE: ClassVar[str] = "status_report"

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {"report": self.report}

    @classmethod
    def parse(cls, fields: Fields) -> StatusReport:
        """The message with these keys."""
        return cls(fields.child("report").whole)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request is not granted.

    Attributes:
        error: What happened.
        own_fault: Whether the daemon itself failed or is overloaded, so that another way to the
            same files may still work.
    """

    error: CraftcacheError
    own_fault: bool = False

    TYPE: ClassVar[str] = "problem"

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message as a JSON object, texts clipped to ``text_limit``."""
        return {"problem": _problem(self.error, text_limit), "own_fault": self.own_fault}

    @classmethod
    def parse(cls, fields: Fields) -> Problem:
        """The message with these keys."""
        return cls(fields.child("problem").error(), fields.flag("own_fault"))


Answer: TypeAlias = Loaded | Resolved | Warmed | StatusReport | ModelsPage | Identified | Generation


def _files(fields: Fields) -> tuple[ServedFile, ...]:
    return tuple(map(ServedFile.parse, fields.children("files", MAX_FILES)))


def _problem(error: CraftcacheError, text_limit: int) -> dict[str, Any]:
    problem = error.to_problem()
    for key in ("detail", "hint", "source"):
        if key in problem:
            problem[key] = clipped(problem[key], text_limit)
    return problem
