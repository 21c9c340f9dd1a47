"""From what a user wrote to a source."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit, urlunsplit

from craftcache.digests import Digest
from craftcache.errors import InvalidSource, NotFound
from craftcache.logger import log

from .kinds import (
    FILENAMES,
    HubSource,
    LocalDirectory,
    LocalFile,
    RemoteSource,
    Source,
    UrlSource,
    WatchSource,
)
from .names import check_filename, check_watch_name, shown_url, url_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parse", "locate", "wanted_files"]


_REPO_SEGMENT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./+-]*[A-Za-z0-9_])?")
_GENERATION = re.compile(r"[1-9][0-9]{0,8}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_MAX_REPO_SEGMENT = 96
"""Characters of a repository's name, and of its owner's, as huggingface_hub counts them."""

_MAX_SOURCE = 4096
"""Characters; longer than any real URL of a checkpoint, short enough for one message."""

_GRAMMAR = (
    "Name a local file or directory, an https:// URL, a Hub id org/name[@revision] or watch:NAME"
)


def parse(text: str) -> RemoteSource:
    """Parse what can be served from anywhere: a URL, a Hub id or a watch; touches no file.

    Raises:
        InvalidSource: ``text`` is none of them.
    """
    return _parse_remote(text)


@lru_cache(maxsize=1024)
def _parse_remote(text: str) -> RemoteSource:
    """See parse; workers ask for the same few sources over and over."""
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
    """Resolve ``text`` by AudioCraft's order, file and directory first; reads the disk.

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
    if " " in text:  # one at the end of the path would end what is shown of it, which is parsed too
        raise InvalidSource("the URL has a space in it", source=shown, hint="Write it as %20")
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
        or any(len(segment) > _MAX_REPO_SEGMENT for segment in segments)
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
