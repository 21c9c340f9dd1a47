"""Removing chosen models, as far as nothing needs them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.daemon.administration import KeptModel, Pruning

from .policy import needers_first

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from craftcached.store.removal import Removed

    from .last_use import LastUse
    from .policy import EvictionCandidate

__all__ = ["Pruner", "PruningPlan", "plan_pruning"]


@dataclass(frozen=True, slots=True)
class PruningPlan:
    """Models to remove, those that need others first, and the others that were chosen.

    Attributes:
        victims: The models that go.
        kept: Keys of the chosen ones that stay, each with the reason.
        freed: Bytes that are freed on the disk.
    """

    victims: tuple[EvictionCandidate, ...]
    kept: Mapping[str, str]
    freed: int


def plan_pruning(
    models: Sequence[EvictionCandidate],
    chosen: Collection[str],
    reason: Callable[[EvictionCandidate], str],
) -> PruningPlan:
    """Plan the removal of chosen models.

    A model stays if it is kept in any case, if one of its files is in use, or if a model that stays
    needs it.

    Args:
        models: All published models.
        chosen: Keys of the models that are to go.
        reason: Why a model stays that is kept or in use, in words; see Surveyor.reason.
    """
    by_key = {model.key: model for model in models}
    kept: dict[str, str] = {}
    for key in chosen & by_key.keys():
        if by_key[key].is_kept or any(blob.in_use for blob in by_key[key].blobs):
            kept[key] = reason(by_key[key])
    going = (chosen & by_key.keys()) - kept.keys()
    while spared := _needed(models, going):
        kept |= spared
        going -= spared.keys()
    victims = needers_first([model for model in models if model.key in going])
    holders = Counter(blob for model in models for blob in model.blobs)
    holders.subtract(blob for model in victims for blob in model.blobs)
    freed = {blob for model in victims for blob in model.blobs if not holders[blob]}
    return PruningPlan(tuple(victims), kept, sum(blob.size for blob in freed))


class Pruner:
    """Removes models that were chosen by filters; has no state.

    Args:
        survey: Looks at all published models, as the policy of eviction sees them.
        remove: Removes a model by the key of its manifest, with the dependencies that only it has,
            but for those whose keys are given as well.
        is_kept: Whether a model may not be removed now; asked again before each removal.
        reason: Why a model stays that is kept or in use, in words.
        uses: The time of each model's last use.
        tell: Told of each removed model, as shown to people, and of the bytes that this freed.
    """

    def __init__(
        self,
        *,
        survey: Callable[[], Awaitable[Sequence[EvictionCandidate]]],
        remove: Callable[[str, Collection[str]], Awaitable[Removed]],
        is_kept: Callable[[str], bool],
        reason: Callable[[EvictionCandidate], str],
        uses: LastUse,
        tell: Callable[[str, int], None],
    ) -> None:
        self._survey = survey
        self._remove = remove
        self._is_kept = is_kept
        self._reason = reason
        self._uses = uses
        self._tell = tell

    async def prune(self, chosen: Collection[str], *, dry_run: bool) -> Pruning:
        """Remove models, or say which of them would be removed.

        Args:
            chosen: Keys of their manifests.
            dry_run: Whether nothing is removed.
        """
        models = await self._survey()
        plan = plan_pruning(models, frozenset(chosen), self._reason)
        sources = {model.key: model.source for model in models}
        kept = [KeptModel(sources[key], why) for key, why in plan.kept.items()]
        if dry_run:
            removed = tuple(victim.source for victim in plan.victims)
            return Pruning(removed, plan.freed, tuple(_sorted(kept)))
        going = {victim.key for victim in plan.victims}
        gone: list[str] = []
        freed = 0
        for victim in plan.victims:
            # It may have come into use since it was surveyed: then what it needs stays as well.
            if self._is_kept(victim.key) or self._uses.last(victim.key) > victim.last_use:
                kept.append(KeptModel(victim.source, "just used"))
                going -= {victim.key, *victim.needs}
                continue
            if victim.key not in going:
                kept.append(KeptModel(victim.source, "needed"))
                continue
            outcome = await self._remove(victim.key, sources.keys() - going)
            for key in {victim.key, *outcome.keys}:
                await self._uses.forget(key)
            self._tell(victim.source, outcome.freed)
            gone.append(victim.source)
            freed += outcome.freed
        return Pruning(tuple(gone), freed, tuple(_sorted(kept)))


def _needed(models: Iterable[EvictionCandidate], going: Collection[str]) -> dict[str, str]:
    """Those of ``going`` that models which stay need, each with what needs it."""
    return {
        key: f"needed by {model.source}"
        for model in models
        if model.key not in going
        for key in model.needs & set(going)
    }


def _sorted(kept: Iterable[KeptModel]) -> list[KeptModel]:
    return sorted(kept, key=lambda model: model.source)
