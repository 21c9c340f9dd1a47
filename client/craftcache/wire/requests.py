"""What a worker asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from craftcache.sources import check_filename

from .answers import Loaded, Resolved, StatusReport, Warmed
from .fields import (
    MAX_FILENAME,
    MAX_SOURCE,
    MAX_WARM_SOURCES,
    MAX_WATCH_NAME,
    WireError,
    text,
)
from .models import ModelsPage
from .watching import Generation, Identified

if TYPE_CHECKING:
    from .fields import Fields

__all__ = ["Request", "Load", "Resolve", "Warm", "Status", "Models", "Identify", "Follow"]

AnswerT = TypeVar("AnswerT", covariant=True)


class Request(Generic[AnswerT]):
    """What a worker asks for, by the type of its answer."""

    __slots__ = ()

    TYPE: ClassVar[str]
    ANSWER: ClassVar[type[Any]]

    def to_fields(self) -> dict[str, Any]:
        """The message's keys, but for its type."""
        raise NotImplementedError

    def is_answered_by(self, answer: object) -> bool:
        """Whether ``answer`` is of the kind that this asks for, and fits what it asks for."""
        return isinstance(answer, self.ANSWER)


@dataclass(frozen=True, slots=True)
class Load(Request[Loaded]):
    """Open the files of a source, fetching them first where need be.

    Attributes:
        source: A source as :func:`craftcache.sources.parse` accepts it (not yet parsed here).
        filenames: Files inside the source; none stands for the export's pair, or for the one
            file of a URL that names one.
    """

    source: str
    filenames: tuple[str, ...] = ()

    TYPE: ClassVar[str] = "load"
    ANSWER: ClassVar[type[Any]] = Loaded

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {"source": self.source, "filenames": list(self.filenames)}

    @classmethod
    def parse(cls, fields: Fields) -> Load:
        """The message with these keys."""
        source = fields.text("source", MAX_SOURCE)
        return cls(source, fields.filenames(source))


@dataclass(frozen=True, slots=True)
class Resolve(Request[Resolved]):
    """Say where in the cache directory a file of a source is, fetching it first where need be."""

    source: str
    filename: str

    TYPE: ClassVar[str] = "resolve"
    ANSWER: ClassVar[type[Any]] = Resolved

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {"source": self.source, "filename": self.filename}

    @classmethod
    def parse(cls, fields: Fields) -> Resolve:
        """The message with these keys."""
        source = fields.text("source", MAX_SOURCE)
        return cls(source, check_filename(fields.text("filename", MAX_FILENAME), source=source))


@dataclass(frozen=True, slots=True)
class Warm(Request[Warmed]):
    """Bring sources to their newest revision, and what they need; every one is tried.

    Attributes:
        sources: At most MAX_WARM_SOURCES of them.
        filenames: Of each source; none stands for the export's pair.
        resident: Whether to bring the files into memory as well.
        pair_only: Whether to leave out what the sources need.
    """

    sources: tuple[str, ...]
    filenames: tuple[str, ...] = ()
    resident: bool = False
    pair_only: bool = False

    TYPE: ClassVar[str] = "warm"
    ANSWER: ClassVar[type[Any]] = Warmed

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {
            "sources": list(self.sources),
            "filenames": list(self.filenames),
            "resident": self.resident,
            "pair_only": self.pair_only,
        }

    def is_answered_by(self, answer: object) -> bool:
        """See Request.is_answered_by; there is a result for each source."""
        return isinstance(answer, Warmed) and len(answer.results) == len(self.sources)

    @classmethod
    def parse(cls, fields: Fields) -> Warm:
        """The message with these keys."""
        sources = tuple(
            text(item, "sources", MAX_SOURCE) for item in fields.items("sources", MAX_WARM_SOURCES)
        )
        if not sources:
            raise WireError("'sources' is empty")
        return cls(
            sources,
            fields.filenames(sources[0]),
            fields.optional_flag("resident"),
            fields.optional_flag("pair_only"),
        )


@dataclass(frozen=True, slots=True)
class Status(Request[StatusReport]):
    """Say how the daemon is."""

    TYPE: ClassVar[str] = "status"
    ANSWER: ClassVar[type[Any]] = StatusReport

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {}

    @classmethod
    def parse(cls, _fields: Fields) -> Status:
        """The message with these keys."""
        return cls()


@dataclass(frozen=True, slots=True)
class Models(Request[ModelsPage]):
    """List the models of the cache, in the order of their sources, a page at a time.

    Attributes:
        after: The ``next`` of the page before; empty for the first page.
    """

    after: str = ""

    TYPE: ClassVar[str] = "models"
    ANSWER: ClassVar[type[Any]] = ModelsPage

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {"after": self.after}

    def is_answered_by(self, answer: object) -> bool:
        """See Request.is_answered_by; a next page is a later one, so that pages come to an end."""
        return isinstance(answer, ModelsPage) and (not answer.next or answer.next > self.after)

    @classmethod
    def parse(cls, fields: Fields) -> Models:
        """The message with these keys."""
        return cls(fields.text("after", MAX_SOURCE, empty=True))


@dataclass(frozen=True, slots=True)
class Identify(Request[Identified]):
    """Say whether a directory is watched; it is the worker's own, and so known by no path.

    Attributes:
        device: ``st_dev`` of the directory.
        inode: Its ``st_ino``.
    """

    device: int
    inode: int

    TYPE: ClassVar[str] = "identify"
    ANSWER: ClassVar[type[Any]] = Identified

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {"device": self.device, "inode": self.inode}

    @classmethod
    def parse(cls, fields: Fields) -> Identify:
        """The message with these keys."""
        return cls(fields.integer("device"), fields.integer("inode"))


@dataclass(frozen=True, slots=True)
class Follow(Request[Generation]):
    """Wait until another generation of a watch is served than the one known already.

    Attributes:
        name: Of the watch.
        after: The number of the generation that is known; None for whichever is served.
    """

    name: str
    after: int | None = None

    TYPE: ClassVar[str] = "follow"
    ANSWER: ClassVar[type[Any]] = Generation

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {"name": self.name, "after": self.after}

    def is_answered_by(self, answer: object) -> bool:
        """See Request.is_answered_by; the answer is another generation of the same watch."""
        return (
            isinstance(answer, Generation)
            and answer.name == self.name
            and answer.number != self.after
        )

    @classmethod
    def parse(cls, fields: Fields) -> Follow:
        """The message with these keys."""
        return cls(fields.text("name", MAX_WATCH_NAME), fields.optional_integer("after"))
