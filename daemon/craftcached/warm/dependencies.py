"""What a published model needs beyond its own files, made present after it.

All of it is verified like any source. Nobody is handed it to load, so it is not inspected until
somebody asks for it by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.errors import CraftcacheError

from .tasks import all_results

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from craftcache.cache.manifest import Manifest
    from craftcache.dependencies import Dependency

__all__ = ["MetNeed", "warm_needs"]


@dataclass(frozen=True, slots=True)
class MetNeed:
    """What a model needs, as it is cached now.

    Attributes:
        manifest: What is published of it: all that is needed, and maybe more.
        superseded: As in Warmed.
        not_refreshed: Why its origin could not be asked for a newer revision; None where it was.
    """

    manifest: Manifest
    superseded: Manifest | None = None
    not_refreshed: CraftcacheError | None = None


async def warm_needs(
    manifest: Manifest, warm: Callable[[Dependency], Coroutine[object, object, MetNeed]]
) -> list[MetNeed]:
    """Make present, at its newest revision, what a model needs, and what that needs in turn.

    All of it is tried, so that a failure leaves no more to be done than what failed.

    Args:
        manifest: The model.
        warm: Makes one need present.

    Returns:
        What was needed.

    Raises:
        CraftcacheError: The first failure, as one of the model; it says what is needed and why.
    """

    async def attempt(need: Dependency) -> MetNeed | CraftcacheError:
        try:
            return await warm(need)
        except CraftcacheError as error:
            return error

    met: dict[Dependency, MetNeed] = {}
    wanted = manifest.needs
    # Needs may need each other: each is warmed once, and the walk ends when none is new.
    while wanted := tuple(need for need in wanted if need not in met):
        outcomes = await all_results(attempt(need) for need in wanted)
        for need, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, CraftcacheError):
                raise _as_failure_of(manifest, need, outcome)
            met[need] = outcome
        wanted = tuple(need for each in met.values() for need in each.manifest.needs)
    return list(met.values())


def _as_failure_of(manifest: Manifest, need: Dependency, error: CraftcacheError) -> CraftcacheError:
    """The failure of a need as one of the model, which itself is published."""
    failure = error.about(manifest.source)
    failure.message = f"{need.parsed.shown} is missing, {need.why}: {error.message}"
    failure.hint = ". ".join(filter(None, (error.hint, "Or leave it out with --pair-only")))
    return failure
