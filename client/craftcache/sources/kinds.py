"""The kinds of sources, each as the values that it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args
from urllib.parse import urlsplit, urlunsplit

from .names import basename, is_commit, shown_url, url_digest

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache.digests import Digest

__all__ = [
    "Part",
    "PARTS",
    "FILENAMES",
    "HubSource",
    "UrlSource",
    "WatchSource",
    "LocalFile",
    "LocalDirectory",
    "RemoteSource",
    "Source",
]

Part: TypeAlias = Literal["lm", "compression"]

PARTS: tuple[Part, ...] = get_args(Part)

FILENAMES: dict[Part, str] = {"lm": "state_dict.bin", "compression": "compression_state_dict.bin"}
"""The name of each part's file in an export, by AudioCraft's convention."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A Hugging Face Hub repository, ``org/name`` with an optional ``@revision``.

    Attributes:
        repo_id: The id exactly as named, for the cache is looked up under exactly that.
        revision: A branch, tag or commit; ``main`` where none was named.
    """

    repo_id: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repo_id if self.revision == "main" else f"{self.repo_id}@{self.revision}"

    @property
    def shown(self) -> str:
        """The source as it may be logged, listed and shown."""
        return str(self)

    @property
    def spelled(self) -> str:
        """The source as :func:`parse` reads it back."""
        return str(self)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never moves."""
        return is_commit(self.revision)


@dataclass(frozen=True, slots=True)
class UrlSource:
    """An ``https://`` URL: one checkpoint, or the directory that holds an export.

    Attributes:
        url: Without a fragment, as it will be requested. May carry a signed query: show
            :func:`shown_url` of it, never itself.
        filename: For a URL that named one of an export's two files, that file's name.
        digest: Digest that ``#sha256=`` or a torch.hub file name promises for the named file.
        is_export: Whether the URL names an export directory; then ``url`` ends in ``/``.
    """

    url: str
    filename: str | None = None
    digest: Digest | None = None
    is_export: bool = False

    def __str__(self) -> str:
        return self.url

    def file_url(self, filename: str) -> str:
        """The URL of one file: of an export its named file, else the URL itself."""
        if not self.is_export:
            return self.url
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=parts.path + filename))

    def file_digest(self, filename: str) -> Digest | None:
        """The digest that the URL itself promises for ``filename``, if it does."""
        return None if self.is_export and filename != self.filename else self.digest

    @property
    def spelled(self) -> str:
        """The source with all that it promises, as :func:`parse` reads it back."""
        url = self.file_url(self.filename) if self.filename else self.url
        is_written = self.digest is not None and url_digest(url) != self.digest
        return f"{url}#sha256={self.digest.hex}" if self.digest and is_written else url

    @property
    def basename(self) -> str:
        """The last segment of the URL's path, which names a single checkpoint."""
        return basename(urlsplit(self.url))

    @property
    def shown(self) -> str:
        """The source as it may be logged, listed and shown: a query is only hinted at."""
        return shown_url(self.url) + ("?..." if urlsplit(self.url).query else "")


@dataclass(frozen=True, slots=True)
class WatchSource:
    """``watch:NAME``, an export directory that the daemon watches under that name.

    Attributes:
        name: Name of the watch.
        generation: Number of one of its generations, as in ``watch:NAME@3``; None: the served.
    """

    name: str
    generation: int | None = None

    def __str__(self) -> str:
        number = "" if self.generation is None else f"@{self.generation}"
        return f"watch:{self.name}{number}"

    @property
    def spelled(self) -> str:
        """The source as :func:`parse` reads it back."""
        return str(self)

    @property
    def shown(self) -> str:
        """The source as it may be logged, listed and shown."""
        return str(self)


@dataclass(frozen=True, slots=True)
class LocalFile:
    """An existing file of the worker's own."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def shown(self) -> str:
        """The source as it may be logged and shown."""
        return str(self.path)


@dataclass(frozen=True, slots=True)
class LocalDirectory:
    """An existing directory of the worker's own."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def shown(self) -> str:
        """The source as it may be logged and shown."""
        return str(self.path)


RemoteSource: TypeAlias = HubSource | UrlSource | WatchSource
Source: TypeAlias = LocalFile | LocalDirectory | RemoteSource
