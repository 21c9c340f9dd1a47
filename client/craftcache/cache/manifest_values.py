"""The values in a manifest's JSON, each checked before it is believed: all raise ManifestError."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Any

from craftcache.errors import InvalidSource
from craftcache.sources import check_filename, is_commit, parse

__all__ = [
    "ManifestError",
    "count_of",
    "filenames_of",
    "flag_of",
    "is_sha256",
    "list_of",
    "revision_of",
    "sha256_of",
    "shown_time",
    "source_of",
    "text_of",
    "time_of",
]

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """The text is not a manifest that this release can read."""


def shown_time(moment: datetime) -> str:
    """A time in RFC 3339, UTC, to the second."""
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def is_sha256(text: str) -> bool:
    """Whether a text is a sha256 in hex."""
    return _SHA256.fullmatch(text) is not None


def sha256_of(value: object) -> str:
    """A sha256 in hex."""
    sha256 = text_of(value)
    if not is_sha256(sha256):
        raise ManifestError(f"{sha256!r} is no sha256")
    return sha256


def filenames_of(value: object) -> tuple[str, ...]:
    """Names of files of a source."""
    return tuple(check_filename(text_of(name), source="manifest") for name in list_of(value))


def revision_of(value: object) -> str:
    """A revision; of the Hub's it becomes part of a path."""
    revision = text_of(value)
    if not is_commit(revision):
        raise ManifestError(f"{revision!r} is no revision")
    return revision


def text_of(value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ManifestError(f"{value!r} is not a string")
    if not value.isascii():
        value.encode()  # half a surrogate pair could be neither shown nor sent
    return value


def source_of(value: object) -> str:
    """The name of a source; it is shown, and read again by whoever removes the model."""
    source = text_of(value)
    try:
        _ = parse(source)
    except InvalidSource as error:
        raise ManifestError(f"{source!r} names no source") from error
    return source


def list_of(value: object) -> list[Any]:
    """A list, whose items are not checked."""
    if not isinstance(value, list):
        raise ManifestError(f"{value!r} is not a list")
    return value


def flag_of(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ManifestError(f"{value!r} is neither true nor false")
    return value


def count_of(value: object) -> int:
    """An integer from 0 to 2**63 - 1."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ManifestError(f"{value!r} is not a count")
    return value


def time_of(value: object) -> datetime:
    """A moment, UTC."""
    try:
        # As shown_time writes it; before 3.11 Python does not read the Z.
        moment = datetime.fromisoformat(text_of(value).replace("Z", "+00:00"))
        aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return aware.astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise ManifestError(f"{value!r} is not a time") from error
