"""A JSON object from the other side, read key by key: each getter checks type and bounds."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from craftcache.errors import from_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from craftcache.errors import CraftcacheError

__all__ = [
    "MAX_FILES",
    "MAX_WARM_SOURCES",
    "MAX_SOURCE",
    "MAX_FILENAME",
    "MAX_PATH",
    "MAX_WATCH_NAME",
    "MAX_REVISION",
    "TEXT_LIMITS",
    "WireError",
    "Fields",
    "clipped",
]

T = TypeVar("T")

MAX_FILES = 16
"""Files of a source in one request or answer; three descriptors each stay far below the kernel's
limit of 253 a packet."""

MAX_WARM_SOURCES = 32
"""Sources in one ``warm``: as many as can be answered with a problem each in one message."""

MAX_SOURCE = 4096
"""Characters of a source."""

MAX_FILENAME = 1024
"""Characters of a file's name inside a source."""

MAX_PATH = 4096
"""Characters of a path."""

MAX_WATCH_NAME = 128
"""Characters of a watch's name."""

MAX_FILENAMES_BYTES = 8 * 1024
"""UTF-8 bytes of all filenames of a request, so that any answer about them fits in a message; and
of all its patterns of either kind."""

TEXT_LIMITS = (8192, 2048, 512, 64)
"""Characters that texts for people (of problems, and origins) are clipped to, in turn, until the
message fits; at the last of them every answer does."""

MAX_PATTERNS = 64
"""Patterns of files in one request, of either kind."""

MAX_PATTERN = 256
"""Characters of a pattern."""

MAX_REVISION = 256
"""Characters of a revision."""

MAX_INTEGER = 2**63 - 1

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class WireError(Exception):
    """A message that the protocol does not have: malformed, out of bounds or too large."""


class Fields:
    """A JSON object that is being parsed; unknown keys are ignored.

    Args:
        value: The parsed JSON value.
        refuse: Makes an error from a description of a fault.

    Attributes:
        whole: The object itself.
        refusal: Makes the error to raise from a description of a fault.
    """

    __slots__ = ("refusal", "whole")

    def __init__(self, value: object, refuse: Callable[[str], Exception] = WireError) -> None:
        if not isinstance(value, dict):
            raise refuse("not a JSON object")
        self.whole: dict[str, Any] = value
        self.refusal = refuse

    def is_null(self, key: str) -> bool:
        """Whether the key is absent or null."""
        return self.whole.get(key) is None

    def text(self, key: str, limit: int, *, empty: bool = False) -> str:
        """A string of printable characters, at most ``limit`` of them."""
        return self._text(self.whole.get(key), key, limit, empty=empty)

    def optional_text(self, key: str, limit: int) -> str | None:
        """Likewise, or None where the key is absent or null."""
        return None if self.is_null(key) else self.text(key, limit)

    def texts(self, key: str, count: int, limit: int, *, empty: bool = True) -> tuple[str, ...]:
        """A list of at most ``count`` such strings; ``empty`` says whether it may have none."""
        texts = tuple(self._text(item, key, limit) for item in self.items(key, count))
        if not (texts or empty):
            raise self.refusal(f"{key!r} is empty")
        return texts

    def strings(self, key: str, least: int, most: int) -> tuple[str, ...]:
        """A list of ``least`` to ``most`` strings of whatever content."""
        value = self.whole.get(key)
        is_list = isinstance(value, list) and least <= len(value) <= most
        if not is_list or not all(isinstance(item, str) for item in value or ()):
            raise self.refusal(f"{key!r} is no list of {least} to {most} strings")
        return tuple(value or ())

    def choice(self, key: str, options: Mapping[str, T]) -> T:
        """The value of one of ``options``, which the key names."""
        name = self.whole.get(key)
        if not isinstance(name, str) or name not in options:
            raise self.refusal(f"{key!r} is none of {', '.join(options)}")
        return options[name]

    def sha256(self, key: str) -> str:
        """A sha256 in hex."""
        digits = self.text(key, 64)
        if not _SHA256.fullmatch(digits):
            raise self.refusal(f"{key!r} is no sha256")
        return digits

    def commit(self, key: str) -> str:
        """A commit, or another revision that is a digest, in hex."""
        digits = self.text(key, 40)
        if not _COMMIT.fullmatch(digits):
            raise self.refusal(f"{key!r} is no commit")
        return digits

    def hub_etag(self, key: str) -> str:
        """The name of a blob in huggingface_hub's cache: a sha256 or a git blob sha1, in hex."""
        digits = self.text(key, 64)
        if not (_SHA256.fullmatch(digits) or _COMMIT.fullmatch(digits)):
            raise self.refusal(f"{key!r} is no digest")
        return digits

    def integer(self, key: str) -> int:
        """A number of bytes or the like: an integer from 0 to 2**63 - 1."""
        return self._integer(self.whole.get(key), key)

    def integers(self, key: str, count: int) -> tuple[int, ...]:
        """A list of at most ``count`` such numbers."""
        return tuple(self._integer(item, key) for item in self.items(key, count))

    def optional_integer(self, key: str) -> int | None:
        """An integer, or None where the key is absent or null."""
        return None if self.is_null(key) else self.integer(key)

    def seconds(self, key: str) -> float:
        """A time or duration: a finite number that is not negative."""
        value = self.whole.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(f"{key!r} is no number")
        if not 0 <= value <= MAX_INTEGER:
            raise self.refusal(f"{key!r} is no number of seconds")
        return float(value)

    def optional_seconds(self, key: str) -> float | None:
        """Likewise, or None where the key is absent or null."""
        return None if self.is_null(key) else self.seconds(key)

    def moment(self, key: str) -> datetime:
        """A point in time, as RFC 3339 writes it."""
        text = self.text(key, 64)
        return self.checked(
            lambda: datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc),
            key,
        )

    def checked(self, convert: Callable[[], T], key: str) -> T:
        """What a conversion of the key's value gives; one that fails is a refusal."""
        try:
            return convert()
        except (LookupError, ValueError, OverflowError, OSError):
            raise self.refusal(f"{key!r} is out of bounds") from None

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.whole.get(key)
        if not isinstance(value, bool):
            raise self.refusal(f"{key!r} is neither true nor false")
        return value

    def optional_flag(self, key: str, *, default: bool = False) -> bool:
        """Likewise; ``default`` where the key is absent or null."""
        return default if self.is_null(key) else self.flag(key)

    def items(self, key: str, limit: int) -> list[Any]:
        """A list of at most ``limit`` items, which are not checked yet."""
        value = self.whole.get(key)
        if not isinstance(value, list) or len(value) > limit:
            raise self.refusal(f"{key!r} is no list of at most {limit}")
        return value

    def child(self, key: str) -> Fields:
        """An object inside the object."""
        return Fields(self.whole.get(key), self.refusal)

    def optional_child(self, key: str) -> Fields | None:
        """Likewise, or None where the key is absent or null."""
        return None if self.is_null(key) else self.child(key)

    def children(self, key: str, limit: int) -> Iterator[Fields]:
        """A list of at most ``limit`` objects."""
        return (Fields(item, self.refusal) for item in self.items(key, limit))

    def renamed(self, key: str, to: str) -> Fields:
        """The object with one key under another name, and an empty list where it is absent."""
        return Fields(self.whole | {to: self.whole.get(key, [])}, self.refusal)

    def filenames(self, count: int = MAX_FILES) -> tuple[str, ...]:
        """The key ``filenames``: at most ``count`` names, not checked against their source."""
        names = self.texts("filenames", count, MAX_FILENAME)
        if sum(len(name.encode()) for name in names) > MAX_FILENAMES_BYTES:
            raise self.refusal(f"'filenames' holds more than {MAX_FILENAMES_BYTES} bytes")
        return names

    def patterns(self, key: str) -> tuple[str, ...]:
        """Patterns of files' names; none where the key is absent or null."""
        patterns = () if self.is_null(key) else self.texts(key, MAX_PATTERNS, MAX_PATTERN)
        if sum(len(pattern.encode()) for pattern in patterns) > MAX_FILENAMES_BYTES:
            raise self.refusal(f"{key!r} holds more than {MAX_FILENAMES_BYTES} bytes")
        return patterns

    def error(self) -> CraftcacheError:
        """The object as a problem document."""
        problem = {
            "code": self.text("code", 64),
            "detail": self._words("detail"),
            "retryable": self.flag("retryable"),
        }
        for key in ("source", "hint"):
            if not self.is_null(key):
                problem[key] = self._words(key)
        if not self.is_null("retry_after"):
            problem["retry_after"] = self.seconds("retry_after")
        for key in ("missing_bytes", "needed_bytes", "free_bytes"):
            if not self.is_null(key):
                problem[key] = self.integer(key)
        return from_problem(problem)

    def _text(self, value: object, key: str, limit: int, *, empty: bool = False) -> str:
        """``value`` if it is a string of printable characters, at most ``limit`` of them.

        What is printable holds no line ends, control characters or lone surrogates, so it can be
        logged, shown and encoded as it is.
        """
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            raise self.refusal(f"{key!r} is no string of at most {limit} printable characters")
        if not (value or empty):
            raise self.refusal(f"{key!r} is empty")
        return value

    def _integer(self, value: object, key: str) -> int:
        if type(value) is not int or not 0 <= value <= MAX_INTEGER:
            raise self.refusal(f"{key!r} is no integer from 0 to 2**63 - 1")
        return value

    def _words(self, key: str) -> str:
        """Text meant for people, which may have several lines."""
        value = self.whole.get(key)
        if not isinstance(value, str):
            raise self.refusal(f"{key!r} is no string")
        return value


def clipped(words: str, limit: int) -> str:
    """``words`` with their end left out, where they have more than ``limit`` characters."""
    return words if len(words) <= limit else words[: limit - 3] + "..."
