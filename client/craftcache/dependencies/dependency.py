"""A model's dependencies: other sources, and things that no cache can hold."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

from craftcache.errors import InvalidSource, NotFound
from craftcache.sources import HubSource, UrlSource, check_filename, parse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Dependencies", "Group", "Dependency", "DependencyState", "UnmetDependency", "MAX_FILES"]

MAX_FILES = 128
"""Files of one dependency; the largest text encoder, in shards, has a dozen."""

Group: TypeAlias = tuple[str, ...]
"""Patterns of files that are of use only together; ``*`` stands for any characters."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """A source that a model cannot be loaded without, and which of its files.

    Attributes:
        source: Text for :func:`craftcache.sources.parse`: exactly what AudioCraft asks for.
        why: Its purpose, as shown to people.
        filenames: Files that it must have; none means all that the source stands for.
        one_of: Groups, of which the first that the source has is needed; none without a choice.
        optional: Files that are wanted as far as the source has them.
    """

    source: str
    why: str
    filenames: tuple[str, ...] = ()
    one_of: tuple[Group, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def parsed(self) -> HubSource | UrlSource:
        """The source, parsed.

        Raises:
            InvalidSource: It is none that can be fetched.
        """
        source = parse(self.source)
        if isinstance(source, HubSource | UrlSource):
            return source
        raise InvalidSource(
            "a watch is no need of a model", source=source.shown, hint="Name a Hub id or a URL"
        )

    @property
    def is_fixed(self) -> bool:
        """Whether its files are known without asking which the source has."""
        return not self.one_of and not self.optional

    def is_met_by(self, filenames: Collection[str]) -> bool:
        """Whether a copy of the source that has ``filenames`` is all that is needed."""
        return set(self.filenames) <= set(filenames) and (
            not self.one_of or _first_present(self.one_of, filenames) is not None
        )

    def choose(self, listing: Iterable[str]) -> tuple[str, ...]:
        """The files to fetch among those that the source has.

        Args:
            listing: All files of the source.

        Raises:
            NotFound: It lacks one that it must have.
            InvalidSource: More files are named so than a need may have.
        """
        there = set(listing)
        if missing := [name for name in self.filenames if name not in there]:
            raise self._lacks(missing[0])
        chosen = dict.fromkeys(self.filenames)
        if self.one_of:
            group = _first_present(self.one_of, there)
            if group is None:
                raise self._lacks(" and no ".join(names[0] for names in self.one_of))
            chosen |= dict.fromkeys(sorted(_matching(group, there)))
        chosen |= dict.fromkeys(name for name in self.optional if name in there)
        if len(chosen) > MAX_FILES:
            raise InvalidSource(
                f"more than {MAX_FILES} files",
                source=self.source,
                hint="This is no repository that AudioCraft was made for",
            )
        return tuple(check_filename(name, source=self.source) for name in chosen)

    def _lacks(self, what: str) -> NotFound:
        return NotFound(
            f"the repository has no {what}", source=self.source, hint="Check what the model names"
        )


@dataclass(frozen=True, slots=True)
class DependencyState:
    """A dependency, and whether it is cached.

    Attributes:
        source: The source as shown to people.
        why: Its purpose, as shown to people.
        is_cached: Whether all needed files of it are cached.
    """

    source: str
    why: str
    is_cached: bool


@dataclass(frozen=True, slots=True)
class UnmetDependency:
    """Something that a model needs and that cannot be warmed.

    Attributes:
        what: Name of the thing.
        why: Reason why it is needed and cannot be warmed.
        hint: Advice on how to get it.
    """

    what: str
    why: str
    hint: str


@dataclass(frozen=True, slots=True)
class Dependencies:
    """All dependencies of a model.

    Attributes:
        needs: Dependencies that can be warmed.
        unmet: Dependencies that cannot.
    """

    needs: tuple[Dependency, ...] = ()
    unmet: tuple[UnmetDependency, ...] = ()


def _first_present(groups: Iterable[Group], filenames: Collection[str]) -> Group | None:
    """The first group of which each pattern has a match among ``filenames``."""
    for group in groups:
        if all(any(fnmatchcase(name, pattern) for name in filenames) for pattern in group):
            return group
    return None


def _matching(group: Group, filenames: Iterable[str]) -> set[str]:
    return {name for name in filenames if any(fnmatchcase(name, pattern) for pattern in group)}
