"""The requests: values that pass unchanged from the client to the service that answers.

A client builds them, the daemon's clients and the fallback answer them, the worker socket and HTTP
encode them, and the queue keeps them. Sources are parsed and filenames checked when they are
built, once in each process, so whoever has a request can rely on it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from craftcache.errors import InvalidSource
from craftcache.sources import (
    HubSource,
    Selection,
    UrlSource,
    WatchSource,
    check_filename,
    parse,
    wanted_files,
)

from .answers import Loaded, Resolved, WarmedBatch, WarmedModel
from .fields import (
    MAX_FILENAME,
    MAX_FILES,
    MAX_SOURCE,
    MAX_WARM_SOURCES,
    MAX_WATCH_NAME,
)
from .locking import lock_fields, parse_lock
from .models import ModelsPage
from .request import Request
from .status import DaemonStatus
from .watching import Generation, Identified

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache.locked import LockedRevision
    from craftcache.sources import RemoteSource

    from .fields import Fields

__all__ = [
    "Request",
    "Load",
    "Resolve",
    "Warm",
    "WarmBatch",
    "WarmOptions",
    "WarmKeywords",
    "Status",
    "Models",
    "Identify",
    "Follow",
]

MAX_ASKED = 8 * 1024
"""UTF-8 bytes of all patterns of a request."""

MAX_LOCK = 48 * 1024
"""Bytes of a lock in a request, so that it fits in a message: about 200 files."""

_LISTS = ("filenames", "include", "exclude")
"""Options of a warm that are lists."""


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
        _check(self.filenames, self.source)

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
        _check([self.filename], self.source)

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


class WarmKeywords(TypedDict, total=False):
    """WarmOptions as keyword arguments, for type checkers."""

    filenames: Sequence[str]
    resident: bool
    pair_only: bool
    refresh: bool
    include: Sequence[str]
    exclude: Sequence[str]
    lock: LockedRevision | None
    hold: float


@dataclass(frozen=True, slots=True)
class WarmOptions:
    """The options of a warm.

    A new option is an attribute here and a key of WarmKeywords: encoders and the database go by
    their names. ``Warming.warm`` in the daemon and ``FallbackHandler`` without it act on it.

    Attributes:
        filenames: Files of the source; none stands for the export's pair.
        resident: Whether to read the files into memory as well, as far as there is room.
        pair_only: Whether to leave out the source's dependencies.
        refresh: Whether to ask the origin for a newer revision; without it, the revision that was
            warmed last is used, and only missing files are fetched.
        include: Patterns of the files of a Hub repository, in place of ``filenames``: all that
            match one are meant. See craftcache.sources.Selection.
        exclude: Patterns of files that are not meant, though they match one of ``include``; alone
            they stand for all other files of the repository.
        lock: The one revision that may be warmed, and the digests that its files must have, in
            place of names and patterns; what its source names now is not looked at.
        hold: Seconds for which it must not be evicted, from the end of the warm on; 0 for none.
            The daemon bounds it.
    """

    filenames: tuple[str, ...] = ()
    resident: bool = False
    pair_only: bool = False
    refresh: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    lock: LockedRevision | None = None
    hold: float = 0.0

    @classmethod
    def of(cls, keywords: WarmKeywords) -> WarmOptions:
        """The options that keyword arguments name."""
        given: dict[str, Any] = {**keywords}
        lists = {key: tuple(given.get(key, ())) for key in _LISTS}
        return cls(**given | lists)

    @property
    def selection(self) -> Selection:
        """The files of a whole repository that are meant; false where none are by pattern."""
        return Selection(self.include, self.exclude)

    def to_keywords(self) -> WarmKeywords:
        """The options as keyword arguments."""
        keywords: Any = {option.name: getattr(self, option.name) for option in fields(self)}
        return keywords  # type: ignore[no-any-return]  # their names are the same

    def to_fields(self) -> dict[str, Any]:
        """The options as keys of a JSON object."""
        lists = {key: list(getattr(self, key)) for key in _LISTS}
        return asdict(self) | lists | {"lock": lock_fields(self.lock) if self.lock else None}

    @classmethod
    def parse(cls, given: Fields, max_files: int = MAX_FILES) -> WarmOptions:
        """The options among these keys; a flag that is absent has its default."""
        flags: dict[str, Any] = {
            option.name: given.optional_flag(option.name, default=option.default)
            for option in fields(cls)
            if isinstance(option.default, bool)
        }
        lock = given.optional_child("lock")
        return cls(
            given.filenames(max_files),
            **flags,
            include=given.patterns("include"),
            exclude=given.patterns("exclude"),
            lock=parse_lock(lock) if lock else None,
            hold=0.0 if given.is_null("hold") else given.seconds("hold"),
        )


@dataclass(frozen=True, slots=True)
class Warm(Request[WarmedModel]):
    """Warm a source at its newest revision, with its dependencies.

    Attributes:
        source: The source.
        options: Options of the warm.

    Raises:
        InvalidSource: The options do not fit the source.
    """

    source: RemoteSource
    options: WarmOptions = WarmOptions()

    TYPE: ClassVar[str] = "warm"
    ANSWER: ClassVar[type[Any]] = WarmedModel

    def __post_init__(self) -> None:
        _check(self.options.filenames, self.source)
        _check_selection(self.options, self.source)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files that are asked for, where they are not selected by patterns."""
        lock = self.options.lock
        return lock.names if lock else wanted_files(self.source, self.options.filenames)

    @property
    def about(self) -> RemoteSource | None:
        """See Request.about."""
        return self.source

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        return {"sources": [self.source.spelled], **self.options.to_fields()}

    @classmethod
    def parse(cls, fields: Fields) -> Warm | WarmBatch:
        """The message with these keys, which may name several sources."""
        texts = fields.texts("sources", MAX_WARM_SOURCES, MAX_SOURCE, empty=False)
        options = WarmOptions.parse(fields)
        warms = [cls(parse(text), options) for text in texts]
        return warms[0] if len(warms) == 1 else WarmBatch(tuple(warms))


@dataclass(frozen=True, slots=True)
class WarmBatch(Request[WarmedBatch]):
    """Several warms, each of which is tried; no client of ours sends more than one at once."""

    warms: tuple[Warm, ...]

    TYPE: ClassVar[str] = "warm"
    ANSWER: ClassVar[type[Any]] = WarmedBatch

    @property
    def about(self) -> RemoteSource | None:
        """See Request.about."""
        return self.warms[0].source

    def to_fields(self) -> dict[str, Any]:
        """See Request.to_fields."""
        sources = [warm.source.spelled for warm in self.warms]
        return self.warms[0].to_fields() | {"sources": sources}


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


def _check_selection(options: WarmOptions, source: RemoteSource) -> None:
    """Refuse patterns for a source that lists no files, and two ways of saying which files."""
    ways = (options.filenames, options.selection, options.lock)
    if sum(map(bool, ways)) > 1:
        raise InvalidSource(
            "its files are either named, selected by patterns or locked",
            source=source.shown,
            hint="A name is a pattern too: include it",
        )
    if sum(len(pattern.encode()) for pattern in options.include + options.exclude) > MAX_ASKED:
        raise InvalidSource(
            "its patterns are too many or too long for one request",
            source=source.shown,
            hint="Use wildcards, or warm it in several calls",
        )
    if options.lock and len(json.dumps(lock_fields(options.lock))) > MAX_LOCK:
        raise InvalidSource(
            f"the lock of its {len(options.lock.files)} files is too long for one request",
            source=source.shown,
            hint="Carry them in a bundle: craftcache bundle create",
        )
    if options.lock and isinstance(source, WatchSource):
        raise InvalidSource(
            "a watched directory cannot be locked",
            source=source.shown,
            hint="Publish the export, and lock what it is published as",
        )
    if options.selection and not isinstance(source, HubSource):
        raise InvalidSource(
            "only a repository of the Hub lists its files",
            source=source.shown,
            hint="Name the files that are wanted instead of patterns",
        )


def _check(filenames: Sequence[str], source: RemoteSource) -> None:
    """Refuse names of files that lead out of their source."""
    for filename in filenames:
        check_filename(filename, source=source.shown)
