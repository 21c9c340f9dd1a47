"""What a GPU's service is asked beside loads, and how it is.

Its socket, ``gpu/UUID.sock``, speaks the protocol of ``worker/handles.sock``. A ``load`` there is
answered as the daemon would answer it, with two differences for each file that is in the GPU's
memory: ``memory`` says how many bytes the block has that its descriptor stands for, and the
descriptor of a lease comes after its index. The file is at the beginning of the block, byte for
byte. Whoever has a lease open keeps the block there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from .fields import MAX_FILENAME, MAX_SOURCE, TEXT_LIMITS, clipped
from .record import AtMost, JsonRecord, Sha256, record_fields, text
from .request import Request

if TYPE_CHECKING:
    from .fields import Fields

__all__ = [
    "DescribeGpu",
    "GpuComparison",
    "GpuComparisons",
    "GpuModel",
    "GpuOutcome",
    "GpuReport",
    "VerifyGpu",
]

MAX_NAME = 256
"""Characters of a card's name, and of its UUID."""

MAX_MODELS = 64
"""Models in one message; a service lists those that were used last."""

GpuOutcome: TypeAlias = Literal["right", "wrong"]


@dataclass(frozen=True, slots=True)
class GpuModel(JsonRecord):
    """A file in a GPU's memory.

    Attributes:
        source: The source that it was first asked for by, as shown to people.
        filename: Its name there.
        sha256: Digest of its bytes, in hex.
        bytes: Memory that it takes.
        leases: Leases that processes hold: one for each load of it that is still in use.
        idle_seconds: Time for which nobody has had it; None while somebody has.
    """

    source: Annotated[str, text(MAX_SOURCE)]
    filename: Annotated[str, text(MAX_FILENAME)]
    sha256: Sha256
    bytes: int
    leases: int
    idle_seconds: float | None = None

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The file as a JSON object, its names clipped to ``text_limit``."""
        return record_fields(self) | _clipped(self.source, self.filename, text_limit)


@dataclass(frozen=True, slots=True)
class GpuReport(JsonRecord):
    """How a GPU's service is at one moment.

    Attributes:
        uuid: The GPU, as NVIDIA's tools name it.
        name: Name of the card.
        used_bytes: Memory of the GPU that models take here.
        max_bytes: What they may take at most.
        free_bytes: Memory of the GPU that nobody has; None where it cannot be told.
        total_bytes: Memory of the GPU.
        models: Files there, those used last first; at most 64.
    """

    uuid: Annotated[str, text(MAX_NAME)]
    name: Annotated[str, text(MAX_NAME)]
    used_bytes: int
    max_bytes: int
    free_bytes: int | None
    total_bytes: int
    models: Annotated[tuple[GpuModel, ...], AtMost(MAX_MODELS)] = ()

    TYPE: ClassVar[str] = "gpu_report"

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type."""
        listed = [each.to_fields(text_limit) for each in self.models[:MAX_MODELS]]
        return record_fields(self) | {"models": listed}

    def with_models(self, most: int) -> GpuReport:
        """The same with at most so many models listed."""
        return replace(self, models=self.models[:most])


@dataclass(frozen=True, slots=True)
class GpuComparison(JsonRecord):
    """A file in a GPU's memory, compared with what its digest promises.

    Attributes:
        uuid: The GPU.
        source: See GpuModel.
        filename: Its name there.
        sha256: Digest that its bytes must have, in hex.
        outcome: Whether they have it. What is wrong is handed to nobody any more.
    """

    uuid: Annotated[str, text(MAX_NAME)]
    source: Annotated[str, text(MAX_SOURCE)]
    filename: Annotated[str, text(MAX_FILENAME)]
    sha256: Sha256
    outcome: GpuOutcome

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The comparison as a JSON object, its names clipped to ``text_limit``."""
        return record_fields(self) | _clipped(self.source, self.filename, text_limit)


@dataclass(frozen=True, slots=True)
class GpuComparisons:
    """The comparison of each file in a GPU's memory; at most 64."""

    comparisons: tuple[GpuComparison, ...]

    TYPE: ClassVar[str] = "gpu_verified"

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type."""
        return {"results": [each.to_fields(text_limit) for each in self.comparisons[:MAX_MODELS]]}

    @classmethod
    def parse(cls, fields: Fields) -> GpuComparisons:
        """The message with these keys."""
        return cls(tuple(map(GpuComparison.parse, fields.children("results", MAX_MODELS))))


@dataclass(frozen=True, slots=True)
class DescribeGpu(Request[GpuReport]):
    """Say what is in the GPU's memory."""

    TYPE: ClassVar[str] = "gpu"
    ANSWER: ClassVar[type[Any]] = GpuReport

    @classmethod
    def parse(cls, _fields: Fields) -> DescribeGpu:
        """The message with these keys."""
        return cls()


@dataclass(frozen=True, slots=True)
class VerifyGpu(Request[GpuComparisons]):
    """Compare what is in the GPU's memory with what was verified."""

    TYPE: ClassVar[str] = "gpu_verify"
    ANSWER: ClassVar[type[Any]] = GpuComparisons

    @classmethod
    def parse(cls, _fields: Fields) -> VerifyGpu:
        """The message with these keys."""
        return cls()


def _clipped(source: str, filename: str, limit: int) -> dict[str, str]:
    return {"source": clipped(source, limit), "filename": clipped(filename, limit)}
