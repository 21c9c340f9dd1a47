"""What the HTTP interface says to administrators, as values that both of its ends share.

See craftcache.wire.record for how they stand in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from craftcache.errors import CraftcacheError
from craftcache.sources import PARTS, Part
from craftcache.watch_rule import WatchRule
from craftcache.wire.fields import MAX_SOURCE, MAX_WATCH_NAME
from craftcache.wire.record import (
    AtMost,
    Filename,
    JsonRecord,
    PathText,
    Revision,
    Sha256,
    Source,
    text,
    texts,
)
from craftcache.wire.warm import WarmOptions

if TYPE_CHECKING:
    from craftcache.wire.fields import Fields

__all__ = [
    "QueuedWarm",
    "KeptModel",
    "Eviction",
    "ImportedModel",
    "Pruning",
    "Outcome",
    "Verdict",
    "VerdictPart",
    "Verification",
    "QuarantinedFile",
    "WatchedGeneration",
    "WatchReport",
    "WatchList",
    "option_fields",
]

MAX_MODELS = 1_000_000
MAX_GENERATIONS = 1_000_000
MAX_NAMES = 256
"""Filenames that one warm over HTTP may have."""

MAX_TEXT = 64 * 1024
"""Characters that a text for people may have."""

Outcome: TypeAlias = Literal["right", "mended", "wrong", "missing"]
"""What is found of something cached; ``mended`` was wrong or missing and is right again."""

VerdictPart: TypeAlias = Literal["file", "index", "link", "manifest"]
"""What a verdict is about: a file's bytes, or what leads to them."""

Sources: TypeAlias = Annotated[tuple[str, ...], texts(MAX_MODELS, MAX_SOURCE)]


def _part_digests(given: Fields, key: str) -> dict[Part, str]:
    digests = given.child(key)
    return {part: digests.sha256(part) for part in PARTS if not digests.is_null(part)}


def option_fields(options: WarmOptions) -> dict[str, Any]:
    """Options as keys of a JSON object; over HTTP, ``filenames`` are called ``files``."""
    fields = options.to_fields()
    return {"files": fields.pop("filenames"), **fields}


@dataclass(frozen=True, slots=True)
class QueuedWarm(JsonRecord):
    """A warm that the daemon does by itself; it outlives the request and a restart.

    Attributes:
        id: Number of the warm in the daemon's queue.
        source: The source as shown to people, without secrets.
        options: Options of the warm.
        tries: Number of tries that failed.
        failure: Error of the last try; None where none has failed.
    """

    id: int
    source: str
    options: WarmOptions
    tries: int = 0
    failure: CraftcacheError | None = None

    def to_fields(self) -> dict[str, Any]:
        """The warm as a JSON object, its options beside it."""
        return {
            "id": self.id,
            "source": self.source,
            **option_fields(self.options),
            "tries": self.tries,
            "failure": self.failure.to_problem() if self.failure else None,
        }

    @classmethod
    def parse(cls, fields: Fields) -> QueuedWarm:
        """The warm with these keys."""
        failure = fields.optional_child("failure")
        return cls(
            fields.integer("id"),
            fields.text("source", MAX_SOURCE),
            WarmOptions.parse(fields.renamed("files", "filenames"), MAX_NAMES),
            fields.optional_integer("tries") or 0,
            failure.error() if failure else None,
        )


@dataclass(frozen=True, slots=True)
class KeptModel(JsonRecord):
    """A model that was not evicted, though more bytes were to be freed.

    Attributes:
        source: The model, as shown to people.
        reason: Reason for which it stayed.
    """

    source: Source
    reason: Annotated[str, text(MAX_TEXT)]


@dataclass(frozen=True, slots=True)
class Eviction(JsonRecord):
    """The result of an eviction; for a dry run, what it would be.

    Attributes:
        removed: Sources of the models, as shown to people, in the order of their removal.
        freed_bytes: Bytes freed on the disk.
        missing_bytes: Bytes that were wanted and could not be freed.
        kept: Models that stayed, with the reason, if any bytes are missing.
    """

    removed: Sources
    freed_bytes: int
    missing_bytes: int
    kept: Annotated[tuple[KeptModel, ...], AtMost(MAX_MODELS)]


@dataclass(frozen=True, slots=True)
class Removal(JsonRecord):
    """The result of removing a model by its name.

    Attributes:
        source: The source as shown to people.
        freed_bytes: Bytes freed on the disk.
        was_cached: Whether it was in the cache; else it was only listed as not warm, and no longer
            is.
    """

    source: Source
    freed_bytes: int
    was_cached: bool = True


@dataclass(frozen=True, slots=True)
class Pruning(JsonRecord):
    """The result of removing models by filters; for a dry run, what it would be.

    Attributes:
        removed: Sources of the models, as shown to people, in the order of their removal.
        freed_bytes: Bytes freed on the disk.
        kept: Models that the filters mean and that stayed, with the reason.
    """

    removed: Sources
    freed_bytes: int
    kept: Annotated[tuple[KeptModel, ...], AtMost(MAX_MODELS)]


@dataclass(frozen=True, slots=True)
class ImportedModel(JsonRecord):
    """A model that came in a bundle.

    Attributes:
        source: The model, as shown to people.
        revision: Revision that is served from now on.
        size: Bytes of its files.
    """

    source: Source
    revision: Revision
    size: int


@dataclass(frozen=True, slots=True)
class Verdict(JsonRecord):
    """The result of verifying one cached file, or what leads to it.

    Attributes:
        source: The model, as shown to people; of a manifest that names none, its path.
        filename: The file's name inside it; of a manifest, its path.
        sha256: Digest that the file was published with, in hex; of a manifest, its key.
        outcome: See Outcome.
        part: What it is about. Indexes, links and manifests have a verdict only where they were
            not right.
        quarantined: Path of a wrong file in quarantine, relative to the cache directory; else None.
        failure: Why it is not mended; None where it is, or need not be.
    """

    source: Source
    filename: Filename
    sha256: Sha256
    outcome: Outcome
    part: VerdictPart = "file"
    quarantined: PathText | None = None
    failure: CraftcacheError | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the right bytes are there now."""
        return self.outcome in ("right", "mended")


@dataclass(frozen=True, slots=True)
class Verification(JsonRecord):
    """A verification that runs, or has run, in the daemon; it does not end with its caller.

    Attributes:
        id: Number of the verification, from the daemon's start.
        sources: The models that were named; none stands for all.
        started_at: Time of its start, in seconds since the epoch.
        ended_at: Time of its end; None while it runs.
        files: Number of files that it has to hash.
        bytes: Bytes of them.
        files_done: Number of those that are done.
        bytes_done: Bytes of those that are done.
        found: Number of verdicts, by outcome.
        failure: Why it was given up; None where it was not.
    """

    id: int
    sources: Sources
    started_at: float
    ended_at: float | None
    files: int
    bytes: int
    files_done: int
    bytes_done: int
    found: Mapping[str, int]
    failure: CraftcacheError | None = None


@dataclass(frozen=True, slots=True)
class QuarantinedFile(JsonRecord):
    """A file, or directory, that turned out wrong and is kept for a look.

    Attributes:
        name: Name of it in the quarantine; it begins with the name that it had.
        size: Bytes of it.
        since: Time when it was moved there, in seconds since the epoch.
        sources: Published models that have a file of the name that it had, as shown to people.
    """

    name: Filename
    size: int
    since: float
    sources: Sources


@dataclass(frozen=True, slots=True)
class WatchedGeneration(JsonRecord):
    """A verified state of a watched directory.

    Attributes:
        directory: The directory, as the daemon sees it.
        generation: The number of the state.
        revision: The digest over its files.
        published_at: When it was published, UTC.
        size: Bytes of its files.
        sha256: The digest of each part's file, in hex.
    """

    directory: PathText
    generation: int
    revision: Revision
    published_at: datetime
    size: int
    sha256: Annotated[Mapping[Part, str], _part_digests]


@dataclass(frozen=True, slots=True)
class WatchReport:
    """How a watched directory is.

    Attributes:
        rule: Rule of the watch.
        state: State of the watch, in a word.
        detail: Explanation of the state for people; may be empty.
        since: When the state began, UTC.
        polled: Why the directory is looked at in intervals; None where the kernel tells of changes.
        served: The generation that is served, or None.
        newest: The generation that was made last, or None.
        generations: The numbers of all that are there, oldest first.
        is_held: Whether the one that is served stays, whatever is made, after a rollback.
    """

    rule: WatchRule
    state: str
    detail: str
    since: datetime
    polled: str | None
    served: WatchedGeneration | None
    newest: WatchedGeneration | None
    generations: tuple[int, ...]
    is_held: bool

    def to_fields(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return self.rule.to_fields() | {
            "state": self.state,
            "detail": self.detail,
            "since": self.since.isoformat(timespec="milliseconds"),
            "polled": self.polled,
            "served": self.served.to_fields() if self.served else None,
            "newest": self.newest.to_fields() if self.newest else None,
            "generations": list(self.generations),
            "held": self.is_held,
        }

    @classmethod
    def parse(cls, fields: Fields) -> WatchReport:
        """The report with these keys."""
        served, newest = fields.optional_child("served"), fields.optional_child("newest")
        return cls(
            WatchRule.of(fields.whole),
            fields.text("state", MAX_WATCH_NAME),
            fields.text("detail", MAX_TEXT, empty=True),
            fields.moment("since"),
            fields.optional_text("polled", MAX_TEXT),
            WatchedGeneration.parse(served) if served else None,
            WatchedGeneration.parse(newest) if newest else None,
            fields.integers("generations", MAX_GENERATIONS),
            fields.flag("held"),
        )


@dataclass(frozen=True, slots=True)
class WatchList:
    """What is watched.

    Attributes:
        watches: States of all watched directories.
        patterns: The rules of those that a pattern stands for.
    """

    watches: tuple[WatchReport, ...]
    patterns: tuple[WatchRule, ...]

    def to_fields(self) -> dict[str, Any]:
        """The list as a JSON object."""
        return {
            "watches": [watch.to_fields() for watch in self.watches],
            "patterns": [rule.to_fields() for rule in self.patterns],
        }

    @classmethod
    def parse(cls, fields: Fields) -> WatchList:
        """The list with these keys."""
        return cls(
            tuple(map(WatchReport.parse, fields.children("watches", MAX_MODELS))),
            tuple(WatchRule.of(each.whole) for each in fields.children("patterns", MAX_MODELS)),
        )
