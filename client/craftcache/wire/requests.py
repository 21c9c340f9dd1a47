"""The requests: values that pass unchanged from the client to the service that answers.

A client builds them, the daemon's clients and the fallback answer them, the worker socket and HTTP
encode them. Sources are parsed and filenames checked when they are built, once in each process, so
whoever has a request can rely on it. That to warm is in ``warm``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from craftcache.sources import UrlSource, check_filename, parse, wanted_files

from .answers import Loaded, Resolved
from .fields import MAX_FILENAME, MAX_SOURCE, MAX_WATCH_NAME
from .models import ModelsPage
from .request import Request
from .status import DaemonStatus
from .watching import Generation, Identified

if TYPE_CHECKING:
    from craftcache.sources import RemoteSource

    from .fields import Fields

__all__ = ["Load", "Resolve", "Status", "Models", "Identify", "Follow"]


@dataclass(frozen=True, slots=True)
class Load(Request[Loaded]):
    """Open the files of a source, fetching them first where need be.

    Attributes:
        source: The source.
        filenames: Files inside the source; none stands for the export's pair, or for the one
            file of a URL that names one.
    """

    source: RemoteSource
    filenames: tuple[str, ...] = ()

    TYPE: ClassVar[str] = "load"
    ANSWER: ClassVar[type[Any]] = Loaded

    def __post_init__(self) -> None:
        for filename in self.filenames:
            check_filename(filename, source=self.source.shown)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files that are asked for."""
        return wanted_files(self.source, self.filenames)

    @property
    def about(self) -> RemoteSource | None:
        """See Request.about."""
        return self.source

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        is_single = isinstance(self.source, UrlSource) and not self.source.is_export
        return {
            "source": self.source.spelled,
            "filenames": [] if is_single else list(self.filenames),
        }

    def is_answered_by(self, answer: object) -> bool:
        """See Request.is_answered_by; there is a file for each name."""
        return isinstance(answer, Loaded) and len(answer.files) == len(self.names)

    @classmethod
    def parse(cls, fields: Fields) -> Load:
        """The message with these keys."""
        text, filenames = fields.text("source", MAX_SOURCE), fields.filenames()
        return cls(parse(text), filenames)


@dataclass(frozen=True, slots=True)
class Resolve(Request[Resolved]):
    """Say where in the cache directory a file of a source is, fetching it first where need be."""

    source: RemoteSource
    filename: str

    TYPE: ClassVar[str] = "resolve"
    ANSWER: ClassVar[type[Any]] = Resolved

    def __post_init__(self) -> None:
        check_filename(self.filename, source=self.source.shown)

    @property
    def name(self) -> str:
        """Name of the file that is asked for."""
        [name] = wanted_files(self.source, [self.filename])
        return name

    @property
    def about(self) -> RemoteSource | None:
        """See Request.about."""
        return self.source

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {"source": self.source.spelled, "filename": self.filename}

    @classmethod
    def parse(cls, fields: Fields) -> Resolve:
        """The message with these keys."""
        text, filename = fields.text("source", MAX_SOURCE), fields.text("filename", MAX_FILENAME)
        return cls(parse(text), filename)


@dataclass(frozen=True, slots=True)
class Status(Request[DaemonStatus]):
    """Report the daemon's status."""

    TYPE: ClassVar[str] = "status"
    ANSWER: ClassVar[type[Any]] = DaemonStatus

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

    def is_answered_by(self, answer: object) -> bool:
        """See Request.is_answered_by; a next page is a later one, so that pages come to an end."""
        return isinstance(answer, ModelsPage) and (not answer.next or answer.next > self.after)

    @classmethod
    def parse(cls, fields: Fields) -> Models:
        """The message with these keys."""
        return cls(fields.text("after", MAX_SOURCE, empty=True))


@dataclass(frozen=True, slots=True)
class Identify(Request[Identified]):
    """Say whether a directory is watched; by inode, as the worker's paths may be its own.

    Attributes:
        device: ``st_dev`` of the directory.
        inode: ``st_ino`` of the directory.
    """

    device: int
    inode: int

    TYPE: ClassVar[str] = "identify"
    ANSWER: ClassVar[type[Any]] = Identified

    @classmethod
    def parse(cls, fields: Fields) -> Identify:
        """The message with these keys."""
        return cls(fields.integer("device"), fields.integer("inode"))


@dataclass(frozen=True, slots=True)
class Follow(Request[Generation]):
    """Wait until another generation of a watch is served than the one known already.

    Attributes:
        name: Name of the watch.
        after: Number of the generation that is known; None for whichever is served.
    """

    name: str
    after: int | None = None

    TYPE: ClassVar[str] = "follow"
    ANSWER: ClassVar[type[Any]] = Generation

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
