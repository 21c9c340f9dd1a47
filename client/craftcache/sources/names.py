"""What names may look like, and what of a URL may be seen."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from craftcache.digests import Digest
from craftcache.errors import InvalidSource

__all__ = [
    "check_filename",
    "check_watch_name",
    "is_commit",
    "shown_url",
    "url_digest",
    "basename",
]

_WATCH_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TORCH_HUB_HASH = re.compile(r"-([0-9a-f]{8,64})\.[^.]+(?:\.[^.]+)?$")


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
    match = _TORCH_HUB_HASH.search(basename(urlsplit(url)))
    if match is None:
        return None
    digits = match[1]
    return Digest("sha256" if len(digits) == 64 else "sha256-prefix", digits)


def basename(parts: SplitResult) -> str:
    """The last segment of a URL's path, which names a file."""
    return unquote(parts.path).rpartition("/")[2]
