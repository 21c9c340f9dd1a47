"""Which models go when room is wanted: a pure function of what there is.

Whole models go, those first that were not used for longest. Pinned ones stay. A blob that several
models share is freed with the last of them, so it is counted once; and a model stays if its going
would unlink a blob that is in use, because that would free nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Blob", "CachedModel", "Plan", "plan_eviction", "used_bytes"]


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes on the disk, whatever names they have.

    Attributes:
        device: ``st_dev`` of the file.
        inode: ``st_ino`` of it.
        size: In bytes.
        in_use: Whether somebody has it open.
    """

    device: int
    inode: int
    size: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model that may have to go.

    Attributes:
        key: Of its manifest.
        source: As shown to people.
        blobs: What it consists of.
        last_use: When it was last served or published, in seconds since the epoch.
        is_kept: Whether it stays in any case: pinned, or just being handed over.
    """

    key: str
    source: str
    blobs: frozenset[Blob]
    last_use: float
    is_kept: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Models to remove, in this order, and the bytes that their going frees."""

    victims: tuple[CachedModel, ...]
    freed: int


def used_bytes(models: Iterable[CachedModel]) -> int:
    """Bytes of all models, each blob once."""
    return sum(blob.size for blob in frozenset().union(*(model.blobs for model in models)))


def plan_eviction(models: Iterable[CachedModel], wanted: int) -> Plan:
    """What to remove so that ``wanted`` bytes are freed, or as many as can be.

    Args:
        models: All there are; blobs with the same device and inode are equal.
        wanted: Bytes.
    """
    ordered = sorted(models, key=lambda model: (model.last_use, model.key))
    staying: set[str] = {model.key for model in ordered if model.is_kept}
    while True:
        victims, freed = _remove_oldest(ordered, staying, wanted)
        gainless = {model.key for model in victims if not model.blobs & freed}
        total = sum(blob.size for blob in freed)
        if total >= wanted or not gainless:
            return Plan(tuple(model for model in victims if model.key not in gainless), total)
        # Others keep their blobs after all. With these staying, others than those may go.
        staying |= gainless


def _remove_oldest(
    models: Sequence[CachedModel], staying: set[str], wanted: int
) -> tuple[list[CachedModel], set[Blob]]:
    """Remove what may go until ``wanted`` bytes are freed; returns it and the blobs freed."""
    holders = Counter(blob for model in models for blob in model.blobs)
    victims: list[CachedModel] = []
    freed: set[Blob] = set()
    for model in models:
        if wanted <= 0:
            break
        last_held = {blob for blob in model.blobs if holders[blob] == 1}
        if model.key in staying or any(blob.in_use for blob in last_held):
            continue
        victims.append(model)
        holders.subtract(model.blobs)
        freed |= last_held
        wanted -= sum(blob.size for blob in last_held)
    return victims, freed
