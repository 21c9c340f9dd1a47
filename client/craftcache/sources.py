"""What a user names, parsed once at the edge.

The convention is AudioCraft's loader's: an existing local file, an existing local directory, an
``https://`` URL, otherwise a Hugging Face Hub id. ``watch:NAME`` is ours and cannot be mistaken
for any of them. Local paths are the worker's own and never cross a socket: :func:`parse` knows
only what a daemon can serve, :func:`locate` looks at the file system first.

What a source is made of is a set of *files*. An export is the pair ``state_dict.bin`` (part
``lm``) and ``compression_state_dict.bin`` (part ``compression``).
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from .errors import InvalidSource, NotFound
from .verify import Digest

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    "parse",
    "locate",
    "wanted_files",
    "check_filename",
    "check_watch_name",
    "is_commit",
    "shown_url",
    "url_digest",
]

log = logging.getLogger("craftcache")

Part: TypeAlias = Literal["lm", "compression"]

PARTS: tuple[Part, ...] = get_args(Part)

FILENAMES: dict[Part, str] = {"lm": "state_dict.bin", "compression": "compression_state_dict.bin"}
"""The name of each part's file in an export, by AudioCraft's convention."""

_REPO_SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./+-]*[A-Za-z0-9_])?")
_WATCH_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?")
_GENERATION = re.compile(r"[1-9][0-9]{0,8}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_TORCH_HUB_HASH = re.compile(r"-([0-9a-f]{8,64})\.[^.]+(?:\.[^.]+)?$")
_MAX_REPO_ID = 96
_MAX_SOURCE = 4096
"""Characters; longer than any real URL of a checkpoint, short enough for one message."""


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
        digest: What ``#sha256=`` or a torch.hub file name promises, of the file that was named.
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
        return _basename(urlsplit(self.url))

    @property
    def shown(self) -> str:
        """The source as it may be logged, listed and shown: a query is only hinted at."""
        return shown_url(self.url) + ("?..." if urlsplit(self.url).query else "")


@dataclass(frozen=True, slots=True)
class WatchSource:
    """``watch:NAME``, an export directory that the daemon watches under that name.

    Attributes:
        name: Of the watch.
        generation: Which one of its generations, as in ``watch:NAME@3``; None is the one served.
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


def parse(text: str) -> RemoteSource:
    """Parse what can be served from anywhere: a URL, a Hub id or a watch; touches no file.

    Raises:
        InvalidSource: ``text`` is none of them.
    """
    if not text or len(text) > _MAX_SOURCE or not text.isprintable() or text != text.strip():
        raise InvalidSource(
            "a source is one line of 1 to 4096 printable characters without space around it",
            source=text[:80],
            hint=_GRAMMAR,
        )
    if text.startswith("watch:"):
        return _parse_watch(text)
    if text.startswith(("https://", "http://")):
        return _parse_url(text)
    if _SCHEME.match(text):
        raise InvalidSource("unknown scheme", source=_without_secrets(text), hint=_GRAMMAR)
    return _parse_hub(text)


def locate(text: str) -> Source:
    """Resolve ``text`` by AudioCraft's order: file, directory, URL, Hub id; reads the disk.

    Raises:
        InvalidSource: ``text`` is none of them.
        NotFound: ``text`` is written as a path and nothing is there.
    """
    path = Path(text)
    try:
        if text and path.is_file():
            return LocalFile(path)
        if text and path.is_dir():
            if _is_hub_id(text):
                log.info("%s is a directory here, which wins over the Hub id", text)
            return LocalDirectory(path)
    except (OSError, ValueError):  # a name too long or with a NUL is no path
        pass
    if text.startswith(("/", "./", "../", "~")):
        raise NotFound(
            "no such file or directory",
            source=text,
            hint="Check the path; a Hub id is written org/name, without a leading dot or slash",
        )
    return parse(text)


def wanted_files(source: RemoteSource, filenames: Sequence[str] = ()) -> tuple[str, ...]:
    """The files that a request means: those named, else all that the source stands for.

    A URL of one checkpoint has that one file, whatever is asked of it.
    """
    if isinstance(source, UrlSource) and not source.is_export:
        return (source.basename,)
    return tuple(filenames) or tuple(FILENAMES.values())


def check_filename(filename: str, *, source: str) -> str:
    """Return ``filename`` if it names a file inside a repository or directory, and only that.

    Raises:
        InvalidSource: It is absolute, climbs out, or holds what no file name should.
    """
    segments = filename.split("/")
    if (
        not filename.isprintable()
        or "\\" in filename
        or len(filename) > 1024
        or any(segment in {"", ".", ".."} for segment in segments)
    ):
        raise InvalidSource(
            f"{filename[:80]!r} is not a file name inside a source",
            source=source,
            hint="Name the file as the repository lists it, like state_dict.bin",
        )
    return filename


def check_watch_name(name: str) -> str:
    """Return ``name`` if a watch may have it.

    Raises:
        InvalidSource: It may not.
    """
    if not _WATCH_NAME.fullmatch(name):
        raise InvalidSource(
            "a watch's name has 1 to 128 letters, digits, '_', '.' or '-', dots and dashes inside",
            source=f"watch:{name[:150]}",
            hint="craftcache watch ls lists the names",
        )
    return name


def is_commit(revision: str) -> bool:
    """Whether ``revision`` is written as a full commit."""
    return _COMMIT.fullmatch(revision) is not None


def shown_url(url: str) -> str:
    """``url`` without user, password, query and fragment: what may be logged and shown."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def url_digest(url: str) -> Digest | None:
    """The digest in a torch.hub file name, ``name-<8 to 64 hex digits>.ext``, if there is one.

    Digits only, such as the ``00002`` of ``model-00001-of-00002.bin``, count from 8 up.
    """
    match = _TORCH_HUB_HASH.search(_basename(urlsplit(url)))
    if match is None:
        return None
    digits = match[1]
    return Digest("sha256" if len(digits) == 64 else "sha256-prefix", digits)


_GRAMMAR = (
    "Name a local file or directory, an https:// URL, a Hub id org/name[@revision] or watch:NAME"
)


def _parse_watch(text: str) -> WatchSource:
    name, at, number = text.removeprefix("watch:").partition("@")
    check_watch_name(name)
    if not at:
        return WatchSource(name)
    if not _GENERATION.fullmatch(number):
        raise InvalidSource(
            "a generation is a number from 1",
            source=text[:200],
            hint="Name one like watch:my-run@3, or none for the one that is served",
        )
    return WatchSource(name, int(number))


def _parse_url(text: str) -> UrlSource:
    shown = _without_secrets(text)
    try:
        parts = urlsplit(text)
        host = parts.hostname
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        host = None
    if not host:
        raise InvalidSource("the URL names no host", source=shown, hint=_GRAMMAR)
    if parts.username is not None or parts.password is not None:
        raise InvalidSource(
            "the URL carries a user or password",
            source=shown,
            hint="Use a signed URL or a Hub repository with a token instead",
        )
    url = urlunsplit(parts._replace(fragment=""))
    digest = _fragment_digest(parts, shown) or url_digest(url)
    directory, _, name = parts.path.rpartition("/")
    if name in ("", *FILENAMES.values()):
        export = urlunsplit(parts._replace(path=directory + "/", fragment=""))
        return UrlSource(export, filename=name or None, digest=digest, is_export=True)
    source = UrlSource(url, digest=digest)
    check_filename(source.basename, source=shown)
    return source


def _fragment_digest(parts: SplitResult, shown: str) -> Digest | None:
    if not parts.fragment.startswith("sha256="):
        return None
    digits = parts.fragment.removeprefix("sha256=").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise InvalidSource(
            "#sha256= wants 64 hex digits", source=shown, hint="sha256sum FILE prints them"
        )
    return Digest("sha256", digits)


def _parse_hub(text: str) -> HubSource:
    repo_id, at, revision = text.partition("@")
    segments = repo_id.split("/")
    if (
        len(segments) > 2
        or len(repo_id) > _MAX_REPO_ID
        or not all(_REPO_SEGMENT.fullmatch(segment) for segment in segments)
        or "--" in repo_id
        or ".." in repo_id
        or repo_id.endswith(".git")
    ):
        raise InvalidSource("malformed Hub id", source=text[:200], hint=_GRAMMAR)
    if not at:
        return HubSource(repo_id)
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise InvalidSource(
            "malformed revision",
            source=text[:200],
            hint="A revision is a branch, a tag or a commit, like org/name@main",
        )
    return HubSource(repo_id, revision)


def _is_hub_id(text: str) -> bool:
    try:
        _parse_hub(text)
    except InvalidSource:
        return False
    return True


def _without_secrets(text: str) -> str:
    try:
        return shown_url(text)
    except ValueError:
        return text.partition("?")[0].rpartition("@")[2]


def _basename(parts: SplitResult) -> str:
    return unquote(parts.path).rpartition("/")[2]
