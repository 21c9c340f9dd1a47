"""The sources that a published model depends on, warmed after the model itself.

They are verified like any source. No worker is handed them to load, so they are not inspected until
somebody asks for them by name.
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

__all__ = ["WarmedDependency", "warm_needs"]


@dataclass(frozen=True, slots=True)
class WarmedDependency:
    """A dependency as it is cached now.

    Attributes:
        manifest: Manifest of the dependency: all files that are needed, and maybe more.
        superseded: As in Warmed.
        not_refreshed: Error that kept its origin from being asked for a newer revision; None
            where it was asked.
    """

    manifest: Manifest
    superseded: Manifest | None = None
    not_refreshed: CraftcacheError | None = None


async def warm_needs(
    manifest: Manifest, warm: Callable[[Dependency], Coroutine[object, object, WarmedDependency]]
) -> list[WarmedDependency]:
    """Warm a model's dependencies, and theirs in turn, at their newest revisions.

    Those of one level are all tried before the first failure is raised, so that only what failed
    is left to be done.

    Args:
        manifest: The model.
        warm: Warms one dependency.

    Returns:
        All dependencies.

    Raises:
        CraftcacheError: The first failure, as one of the model; it says what is needed and why.
    """

    async def attempt(need: Dependency) -> WarmedDependency | CraftcacheError:
        try:
            return await warm(need)
        except CraftcacheError as error:
            return error

    met: dict[Dependency, WarmedDependency] = {}
    wanted = manifest.needs
    # Dependencies may form circles: each is warmed once, and the walk ends when none is new.
    while wanted := tuple(need for need in wanted if need not in met):
        outcomes = await all_results(attempt(need) for need in wanted)
        for need, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, CraftcacheError):
                raise _as_failure_of(manifest, need, outcome)
            met[need] = outcome
        wanted = tuple(need for each in met.values() for need in each.manifest.needs)
    return list(met.values())


def _as_failure_of(manifest: Manifest, need: Dependency, error: CraftcacheError) -> CraftcacheError:
    """The failure of a dependency as one of the model, which itself is published."""
    failure = error.about(manifest.source)
    failure.message = f"{need.parsed.shown} is missing, {need.why}: {error.message}"
    failure.hint = ". ".join(filter(None, (error.hint, "Or leave it out with --pair-only")))
    return failure
