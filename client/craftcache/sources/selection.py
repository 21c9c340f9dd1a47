"""Which files of a whole repository are meant, by patterns of their names."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from craftcache.amounts import counted
from craftcache.errors import InvalidSource, NotFound

from .names import check_filename

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Selection", "NO_SELECTION"]

MAX_SELECTED = 512
"""Files that one selection may mean, all of which are open at once while they are published; the
largest models have a hundred shards."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Files of a repository by patterns, as huggingface_hub's snapshot_download takes them.

    ``*`` stands for any characters, a slash among them; a pattern that ends in a slash means all
    below that directory. A selection without patterns selects nothing.

    Attributes:
        include: Patterns of which a file must match one; none means all files.
        exclude: Patterns of which it must match none.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def has(self, filename: str) -> bool:
        """Whether the selection means a file of that name."""
        if not self or _matches(filename, self.exclude):
            return False
        return not self.include or _matches(filename, self.include)

    def choose(self, listing: Iterable[str], *, source: str) -> tuple[str, ...]:
        """The files that are meant among those that a repository has, sorted.

        Args:
            listing: All files of the repository.
            source: Named in errors.

        Raises:
            NotFound: It has none of them.
            InvalidSource: They are too many, or one has a name that no file should have.
        """
        chosen = sorted({name for name in listing if self.has(name)})
        if not chosen:
            raise NotFound(
                f"no file of the repository is {self.words}",
                source=source,
                hint="Patterns are matched against whole names, like *.safetensors or onnx/*",
            )
        if len(chosen) > MAX_SELECTED:
            raise InvalidSource(
                f"{counted(len(chosen), 'file')} are {self.words}, "
                f"and at most {MAX_SELECTED} may be",
                source=source,
                hint="Include fewer, or warm them in several calls",
            )
        return tuple(check_filename(name, source=source) for name in chosen)

    @property
    def words(self) -> str:
        """The selection for people."""
        included = f"like {', '.join(self.include)}" if self.include else ""
        excluded = f"not like {', '.join(self.exclude)}" if self.exclude else ""
        return " and ".join(filter(None, (included, excluded)))


NO_SELECTION = Selection()
"""No file is selected by a pattern."""


def _matches(filename: str, patterns: Iterable[str]) -> bool:
    return any(
        fnmatchcase(filename, f"{pattern}*" if pattern.endswith("/") else pattern)
        for pattern in patterns
    )
