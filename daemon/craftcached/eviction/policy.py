"""The eviction policy: which models are removed to free bytes, as a pure function.

Superseded revisions are removed first, then whole models, least recently used first. What is kept
(pinned, held, being fetched or handed over) stays. A model's dependencies are removed after it: at
once if they were cached only as dependencies of removed models, else when they are the least
recently used. A blob that several models share is freed with the last of them, so it is counted
once. A model stays if its removal would unlink a blob that is in use, because that would free
nothing. No more is removed than is needed: once models are chosen in that order, each of them is
looked at again, the most recently used first and superseded ones last, and is spared if the others
free enough without it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "Blob",
    "EvictionCandidate",
    "Plan",
    "eviction_rank",
    "needers_first",
    "plan_eviction",
    "used_bytes",
]


@dataclass(frozen=True, slots=True)
class Blob:
    """A file on the disk, whatever names it has.

    Attributes:
        device: ``st_dev`` of the file.
        inode: ``st_ino`` of the file.
        size: In bytes.
        in_use: Whether any process has it open.
    """

    device: int
    inode: int
    size: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """A published model as the policy sees it.

    Attributes:
        key: Key of its manifest.
        source: The source as shown to people.
        blobs: Blobs of its files.
        last_use: Time when it was last served or published, in seconds since the epoch.
        is_kept: Whether it stays in any case: pinned, held, being fetched or handed over.
        needs: Keys of its dependencies.
        is_needed_only: Whether it is cached only as a dependency of other models.
        is_superseded: Whether it is an earlier revision of a source that has moved on since.
    """

    key: str
    source: str
    blobs: frozenset[Blob]
    last_use: float
    is_kept: bool = False
    needs: frozenset[str] = frozenset()
    is_needed_only: bool = False
    is_superseded: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Models to remove, in this order, and the bytes that this frees."""

    victims: tuple[EvictionCandidate, ...]
    freed: int


def eviction_rank(model: EvictionCandidate) -> tuple[bool, float, str]:
    """The order in which models go: superseded ones first, then those unused for longest."""
    return not model.is_superseded, model.last_use, model.key


def used_bytes(models: Iterable[EvictionCandidate]) -> int:
    """Bytes of all models, each blob once."""
    return _size(frozenset().union(*(model.blobs for model in models)))


def plan_eviction(models: Iterable[EvictionCandidate], wanted: int) -> Plan:
    """Plan the removal of models that frees ``wanted`` bytes, or as many as can be.

    Args:
        models: All published models; blobs with the same device and inode are equal.
        wanted: Bytes to free.
    """
    ordered = needers_first(models)
    staying: set[str] = {model.key for model in ordered if model.is_kept}
    while True:
        victims, freed = _choose_oldest(ordered, staying, wanted)
        gainless = _gainless(victims, freed)
        total = _size(freed)
        if total >= wanted or not gainless:
            going = [model for model in victims if model.key not in gainless]
            return _fewest(going, freed, wanted) if total >= wanted else Plan(tuple(going), total)
        # Models that stay share their blobs: removing them frees nothing. Plan again without them.
        staying |= gainless


def _gainless(victims: Sequence[EvictionCandidate], freed: set[Blob]) -> set[str]:
    """Keys of the victims whose removal frees no blob, neither their own nor of what they need."""
    going = {model.key: model for model in victims}
    return {
        model.key
        for model in victims
        if not any(going[key].blobs & freed for key in _closure(model, going))
    }


def needers_first(models: Iterable[EvictionCandidate]) -> list[EvictionCandidate]:
    """In the order of eviction_rank, but dependencies after all models that depend on them."""
    by_age = sorted(models, key=eviction_rank)
    by_key = {model.key: model for model in by_age}
    seen: set[str] = set()
    latest_first: list[EvictionCandidate] = []

    def visit(model: EvictionCandidate) -> None:
        if model.key not in seen:
            seen.add(model.key)
            for key in sorted(model.needs & by_key.keys()):
                visit(by_key[key])
            latest_first.append(model)

    for model in reversed(by_age):
        visit(model)
    return latest_first[::-1]


def _choose_oldest(
    models: Sequence[EvictionCandidate], staying: set[str], wanted: int
) -> tuple[list[EvictionCandidate], set[Blob]]:
    """Choose models in order until ``wanted`` bytes are freed; returns them and the blobs freed."""
    holders = Counter(blob for model in models for blob in model.blobs)
    victims: list[EvictionCandidate] = []
    freed: set[Blob] = set()
    needed: set[str] = set()
    left_behind: set[str] = set()
    for model in models:
        last_held = {blob for blob in model.blobs if holders[blob] == 1}
        is_orphan = model.is_needed_only and model.key in left_behind
        is_wanted = wanted > 0 or is_orphan
        if not is_wanted or model.key in staying | needed or any(b.in_use for b in last_held):
            needed |= model.needs
            continue
        victims.append(model)
        left_behind |= model.needs
        holders.subtract(model.blobs)
        freed |= last_held
        wanted -= _size(last_held)
    return victims, freed


def _fewest(victims: Sequence[EvictionCandidate], freed: set[Blob], wanted: int) -> Plan:
    """The plan without those victims that need not go, the most recently used spared first.

    A model that is spared spares what it needs too. What only a victim needs goes with it. No
    superseded one is spared while a current one goes.
    """
    going = {model.key: model for model in victims}
    spare = _size(freed) - wanted
    for model in reversed(victims):
        if model.key not in going or _is_left_behind(model, going):
            continue
        if model.is_superseded and not all(other.is_superseded for other in going.values()):
            continue
        group = _closure(model, going)
        kept = {blob for key in group for blob in going[key].blobs} & freed
        if _size(kept) <= spare:
            spare -= _size(kept)
            freed = freed - kept
            for key in group:
                del going[key]
    return Plan(tuple(going.values()), _size(freed))


def _is_left_behind(model: EvictionCandidate, going: Mapping[str, EvictionCandidate]) -> bool:
    """Whether a model is cached only for others, and one of them goes."""
    return model.is_needed_only and any(model.key in other.needs for other in going.values())


def _closure(model: EvictionCandidate, among: Mapping[str, EvictionCandidate]) -> set[str]:
    """Keys of a model and of all ``among`` them that it needs, directly or not."""
    found: set[str] = set()
    waiting = [model.key]
    while waiting:
        key = waiting.pop()
        if key not in found and key in among:
            found.add(key)
            waiting += among[key].needs
    return found


def _size(blobs: Iterable[Blob]) -> int:
    return sum(blob.size for blob in blobs)
