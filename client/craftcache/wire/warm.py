"""The request to warm: which sources, which of their files, and how.

The daemon's queue keeps it; over HTTP its options stand in the bodies of warms and plans.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from craftcache.errors import InvalidSource
from craftcache.sources import (
    HubSource,
    Selection,
    WatchSource,
    check_filename,
    parse,
    wanted_files,
)

from .answers import WarmedBatch, WarmedModel
from .fields import MAX_FILES, MAX_SOURCE, MAX_WARM_SOURCES
from .locking import lock_fields, parse_lock
from .request import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from craftcache.locked import LockedRevision
    from craftcache.sources import RemoteSource

    from .fields import Fields

__all__ = ["Warm", "WarmBatch", "WarmOptions", "WarmKeywords"]

MAX_ASKED = 8 * 1024
"""UTF-8 bytes of all patterns of a request."""

MAX_LOCK = 48 * 1024
"""Bytes of a lock in a request, so that it fits in a message: about 200 files."""

_LISTS = ("filenames", "include", "exclude")
"""Options of a warm that are lists."""


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
        for filename in self.options.filenames:
            check_filename(filename, source=self.source.shown)
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
