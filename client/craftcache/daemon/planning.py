"""What a warm would take, as the HTTP interface says it: bytes, room, tensors and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from craftcache.wire.fields import MAX_REVISION, MAX_SOURCE
from craftcache.wire.record import AtMost, Filename, JsonRecord, Source, record_fields, text, texts

__all__ = ["UNKNOWN_DTYPE", "PlannedFile", "PlannedModel", "PlannedRoom", "WarmPlan"]

MAX_MODELS = 100_000
MAX_FILES = 4096
MAX_WHY = 8192

UNKNOWN_DTYPE = "unknown"
"""In place of a dtype, where nothing has looked into the file yet."""


@dataclass(frozen=True, slots=True)
class PlannedFile(JsonRecord):
    """A file of a planned model.

    Attributes:
        filename: Name as the source lists it.
        size: Size in bytes; None where the origin does not say before the first byte.
        is_here: Whether its bytes are on this node, in whatever form.
        tensor_bytes: Bytes of its tensors by dtype; empty of a file that has none. The dtype is
            ``unknown``, and the bytes those of the file, where it was not looked into.
    """

    filename: Filename
    size: int | None
    is_here: bool
    tensor_bytes: Mapping[str, int]

    @property
    def is_estimate(self) -> bool:
        """Whether ``tensor_bytes`` are an estimate by the size of the file."""
        return UNKNOWN_DTYPE in self.tensor_bytes


@dataclass(frozen=True, slots=True)
class PlannedModel(JsonRecord):
    """A model that would be warmed.

    Attributes:
        source: The source as shown to people.
        revision: Commit that would be warmed; empty of a URL.
        why: Why another model needs it; None of one that was named.
        files: The files that would be there then.
        are_needs_known: Whether all that it needs is in the plan too. What a model needs stands in
            its files, so it is not known of one that was never here.
    """

    source: Source
    revision: Annotated[str, text(MAX_REVISION, empty=True)]
    why: Annotated[str, text(MAX_WHY)] | None
    files: Annotated[tuple[PlannedFile, ...], AtMost(MAX_FILES)]
    are_needs_known: bool

    @property
    def fetch_bytes(self) -> int:
        """Bytes to be fetched, as far as sizes are known."""
        return sum(file.size or 0 for file in self.files if not file.is_here)

    @property
    def size(self) -> int:
        """Bytes of all files, as far as sizes are known."""
        return sum(file.size or 0 for file in self.files)

    def to_fields(self) -> dict[str, Any]:
        """The model as a JSON object."""
        return record_fields(self) | {"fetch_bytes": self.fetch_bytes}


@dataclass(frozen=True, slots=True)
class PlannedRoom(JsonRecord):
    """The room that there is for what would be fetched.

    Attributes:
        free_bytes: Bytes that the cache's file system has free.
        min_free_bytes: Bytes of that which no fetch may use; the setting min_free.
        used_bytes: Bytes of all that craftcache has put there.
        max_bytes: The setting max_bytes; 0 is no limit.
        evicted: Sources of the models that would have to go, in this order.
        freed_bytes: Bytes that this frees.
        missing_bytes: Bytes that are missing all the same; 0 where it fits.
    """

    free_bytes: int
    min_free_bytes: int
    used_bytes: int
    max_bytes: int
    evicted: Annotated[tuple[str, ...], texts(MAX_MODELS, MAX_SOURCE)]
    freed_bytes: int
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class WarmPlan(JsonRecord):
    """What a warm would take.

    Attributes:
        models: The models: those that were named, then what they need.
        room: The room for what would be fetched.
        bytes_per_second: Rate at which this daemon has fetched lately; None where it has not.
    """

    models: Annotated[tuple[PlannedModel, ...], AtMost(MAX_MODELS)]
    room: PlannedRoom
    bytes_per_second: float | None

    @property
    def fetch_bytes(self) -> int:
        """Bytes to be fetched, as far as sizes are known."""
        return sum(model.fetch_bytes for model in self.models)

    @property
    def seconds(self) -> float | None:
        """Time that fetching takes at the measured rate; None where none was measured."""
        if not self.fetch_bytes:
            return 0.0
        return self.fetch_bytes / self.bytes_per_second if self.bytes_per_second else None

    @property
    def tensor_bytes(self) -> dict[str, int]:
        """Bytes of all tensors by dtype."""
        total: Counter[str] = Counter()
        for model in self.models:
            for file in model.files:
                total.update(file.tensor_bytes)
        return dict(sorted(total.items()))

    @property
    def is_estimate(self) -> bool:
        """Whether some of ``tensor_bytes`` are an estimate by the sizes of files."""
        return UNKNOWN_DTYPE in self.tensor_bytes

    def to_fields(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return record_fields(self) | {
            "fetch_bytes": self.fetch_bytes,
            "tensor_bytes": self.tensor_bytes,
            "is_estimate": self.is_estimate,
            "seconds": self.seconds,
        }
