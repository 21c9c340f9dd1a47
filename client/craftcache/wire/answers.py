"""What the daemon answers, and what it says until then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from craftcache.closure import NeedState, Unmet

from .fields import MAX_FILENAME, MAX_FILES, MAX_PATH, MAX_SOURCE, MAX_WARM_SOURCES, WireError
from .watching import Generation, Identified

if TYPE_CHECKING:
    from craftcache.errors import CraftcacheError

    from .fields import Fields

__all__ = [
    "TEXT_LIMITS",
    "State",
    "Progress",
    "ServedFile",
    "Model",
    "WarmResult",
    "Loaded",
    "Resolved",
    "Warmed",
    "StatusReport",
    "ModelsPage",
    "Answer",
    "Problem",
]

TEXT_LIMITS = (8192, 2048, 512, 64)
"""Characters that texts for people (of problems, and origins) are clipped to, in turn, until the
message fits; at the last of them every answer does."""

MAX_REVISION = 256
MAX_ORIGIN = TEXT_LIMITS[0]
MAX_MODELS = 4096

MAX_MODEL_FILES = 256
"""Of one model on a page, which only lists them."""

MAX_NEEDS = 64
"""Of one model, and of what it needs and cannot be warmed."""

State: TypeAlias = Literal[
    "queued",
    "fetching",
    "verifying",
    "inspecting",
    "publishing",
    "casting",
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
    "casting": "casting",
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
class ServedFile:
    """A verified file of a source.

    Attributes:
        filename: Its name inside the source.
        sha256: Of all its bytes, in hex.
        size: Its bytes.
        origin: Where the bytes came from, for people; clipped where the message would be too large.
        verified_at: When they were verified, in seconds since the epoch.
        has_index: Whether the descriptor of its index follows that of its blob. A load always
            brings both and a list of models neither; but version 1 requires the key, and counts
            descriptors by it, so it stays as long as that version is spoken.
    """

    filename: str
    sha256: str
    size: int
    origin: str
    verified_at: float
    has_index: bool

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The file as a JSON object, its origin clipped to ``text_limit``."""
        return {
            "filename": self.filename,
            "sha256": self.sha256,
            "size": self.size,
            "origin": _clipped(self.origin, text_limit),
            "verified_at": self.verified_at,
            "has_index": self.has_index,
        }

    @classmethod
    def parse(cls, fields: Fields) -> ServedFile:
        """The file with these keys."""
        return cls(
            filename=fields.text("filename", MAX_FILENAME),
            sha256=fields.sha256("sha256"),
            size=fields.integer("size"),
            origin=fields.text("origin", MAX_ORIGIN, empty=True),
            verified_at=fields.seconds("verified_at"),
            has_index=fields.flag("has_index"),
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
class Model:
    """A model of the cache: what a ``load`` of its source would serve now.

    Attributes:
        source: As shown to people.
        revision: That would be served.
        files: All that are cached of it.
        resident_bytes: Of its files, that are in memory; None where that is not known.
        is_pinned: Whether it stays until it is unpinned.
        is_locked: Whether its pages are to stay in memory too.
        needs: Other sources that it is of no use without.
        unmet: What it needs as well, and no cache can hold.
        is_needed_only: Whether it is here for the sake of others alone.
    """

    source: str
    revision: str
    files: tuple[ServedFile, ...]
    resident_bytes: int | None = None
    is_pinned: bool = False
    is_locked: bool = False
    needs: tuple[NeedState, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    is_needed_only: bool = False

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The model as a JSON object, origins clipped to ``text_limit``."""
        return {
            "source": self.source,
            "revision": self.revision,
            "files": [file.to_fields(text_limit) for file in self.files],
            "resident_bytes": self.resident_bytes,
            "is_pinned": self.is_pinned,
            "is_locked": self.is_locked,
            "needs": [
                {
                    "source": need.source,
                    "why": _clipped(need.why, text_limit),
                    "is_cached": need.is_cached,
                }
                for need in self.needs
            ],
            "unmet": [
                {
                    "what": _clipped(unmet.what, text_limit),
                    "why": _clipped(unmet.why, text_limit),
                    "hint": _clipped(unmet.hint, text_limit),
                }
                for unmet in self.unmet
            ],
            "is_needed_only": self.is_needed_only,
        }

    @classmethod
    def parse(cls, fields: Fields) -> Model:
        """The model with these keys."""
        return cls(
            source=fields.text("source", MAX_SOURCE),
            revision=fields.text("revision", MAX_REVISION),
            files=tuple(map(ServedFile.parse, fields.children("files", MAX_MODEL_FILES))),
            resident_bytes=fields.optional_integer("resident_bytes"),
            is_pinned=fields.optional_flag("is_pinned"),
            is_locked=fields.optional_flag("is_locked"),
            needs=_needs(fields),
            unmet=_unmet(fields),
            is_needed_only=fields.optional_flag("is_needed_only"),
        )


@dataclass(frozen=True, slots=True)
class ModelsPage:
    """Some models, in the order of their sources.

    Attributes:
        models: As many as one message holds.
        next: What to ask for the next page with; empty when this is the last.
    """

    models: tuple[Model, ...]
    next: str = ""

    TYPE: ClassVar[str] = "models_page"

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type, origins clipped to ``text_limit``."""
        return {"models": [model.to_fields(text_limit) for model in self.models], "next": self.next}

    @classmethod
    def parse(cls, fields: Fields) -> ModelsPage:
        """The message with these keys."""
        models = tuple(map(Model.parse, fields.children("models", MAX_MODELS)))
        return cls(models, fields.text("next", MAX_SOURCE, empty=True))


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


def _needs(fields: Fields) -> tuple[NeedState, ...]:
    """The key ``needs``, which a daemon of an earlier release does not send."""
    if fields.is_null("needs"):
        return ()
    return tuple(
        NeedState(
            need.text("source", MAX_SOURCE),
            need.text("why", TEXT_LIMITS[0]),
            need.flag("is_cached"),
        )
        for need in fields.children("needs", MAX_NEEDS)
    )


def _unmet(fields: Fields) -> tuple[Unmet, ...]:
    if fields.is_null("unmet"):
        return ()
    return tuple(
        Unmet(*(unmet.text(key, TEXT_LIMITS[0]) for key in ("what", "why", "hint")))
        for unmet in fields.children("unmet", MAX_NEEDS)
    )


def _problem(error: CraftcacheError, text_limit: int) -> dict[str, Any]:
    problem = error.to_problem()
    for key in ("detail", "hint", "source"):
        if key in problem:
            problem[key] = _clipped(problem[key], text_limit)
    return problem


def _clipped(words: str, limit: int) -> str:
    return words if len(words) <= limit else words[: limit - 3] + "..."
