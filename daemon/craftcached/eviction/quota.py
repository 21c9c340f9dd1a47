"""The room that a cache has, and whether more bytes fit into it, as pure functions.

Two limits count: the quota, which is what craftcache may put there, and the disk, of which a part
stays free. What is *claimed* is the room of files that are being fetched, from before their first
byte until they are published; of it, what is *lacking* is still to be written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .policy import Plan, plan_eviction

if TYPE_CHECKING:
    from collections.abc import Collection

    from .policy import EvictionCandidate

__all__ = ["RoomDecision", "RoomLimits", "RoomUsage", "admit", "excess", "over_disk", "over_quota"]


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """The limits on the room of a cache.

    Attributes:
        max_bytes: Bytes that all that craftcache put there may take; 0 is no limit.
        min_free: Bytes of the file system that no fetch may use.
    """

    max_bytes: int = 0
    min_free: int = 0


@dataclass(frozen=True, slots=True)
class RoomUsage:
    """The use of the room of a cache at one moment; all of it in bytes.

    Attributes:
        used: Published models, superseded revisions, and what else lies in craftcache's own
            directories; each file once, files that are being fetched not.
        claimed: Files that are being fetched, in the size that they will have.
        lacking: Bytes of them that are still to be written.
        free: Free on the file system.
    """

    used: int = 0
    claimed: int = 0
    lacking: int = 0
    free: int = 0


@dataclass(frozen=True, slots=True)
class RoomDecision:
    """Whether more bytes may come, and which models go for them.

    Attributes:
        plan: Models to remove first; none where the bytes are refused.
        missing: Bytes that cannot be freed now; 0 where the bytes may come.
        missing_ever: Bytes that could not be freed even if nothing were in use or being fetched;
            0 where waiting may help.
    """

    plan: Plan
    missing: int = 0
    missing_ever: int = 0


def excess(usage: RoomUsage, limits: RoomLimits, wanted: int) -> int:
    """Bytes to be freed before ``wanted`` more may come; 0 if they fit, or none are wanted."""
    return max(over_disk(usage, limits, wanted), over_quota(usage, limits, wanted))


def over_disk(usage: RoomUsage, limits: RoomLimits, wanted: int) -> int:
    """Bytes to be freed before ``wanted`` more leave the free part of the disk alone."""
    if wanted <= 0:
        return 0
    return max(0, wanted + usage.lacking + limits.min_free - usage.free)


def over_quota(usage: RoomUsage, limits: RoomLimits, wanted: int) -> int:
    """Bytes to be freed before ``wanted`` more are within the quota."""
    if wanted <= 0 or limits.max_bytes <= 0:
        return 0
    return max(0, usage.used + usage.claimed + wanted - limits.max_bytes)


def admit(
    models: Collection[EvictionCandidate],
    usage: RoomUsage,
    limits: RoomLimits,
    wanted: int,
    *,
    kept_for_long: Collection[str] = (),
) -> RoomDecision:
    """Decide whether ``wanted`` more bytes may come, and what goes for them.

    Args:
        models: All that could be removed, and what protects each from it.
        usage: The use of the room now.
        limits: The limits on it.
        wanted: Bytes that are to come.
        kept_for_long: Keys of the models that are kept by a person's word: pinned, or served by a
            watch. Others that are kept, or in use, are so for a while.
    """
    need = excess(usage, limits, wanted)
    plan = plan_eviction(models, need)
    if plan.freed >= need:
        return RoomDecision(plan)
    at_best = [
        replace(
            model,
            is_kept=model.key in kept_for_long,
            blobs=frozenset(replace(blob, in_use=False) for blob in model.blobs),
        )
        for model in models
    ]
    later = replace(usage, claimed=0, lacking=0)
    need_later = excess(later, limits, wanted)
    missing_ever = max(0, need_later - plan_eviction(at_best, need_later).freed)
    return RoomDecision(Plan((), 0), need - plan.freed, missing_ever)
