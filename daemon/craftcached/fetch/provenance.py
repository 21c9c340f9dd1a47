"""Which mirror sent which bytes of a file, so that wrong ones can be traced to their sender.

A file's hash says that something is wrong, and not where. So of an attempt that turned out wrong
the digest of each range is kept, with who sent it; when another attempt has the right bytes, the
ranges that differ are the wrong ones.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .spans import SpanSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .spans import Span
    from .types import RemoteFile

__all__ = ["Provenance", "SentRange"]

MOST_FILES = 64
"""Files whose wrong attempts are remembered; the oldest are forgotten first."""

STEP_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SentRange:
    """Bytes that were sent in an attempt that turned out wrong.

    Attributes:
        mirror: Address of the mirror that sent them; empty for the origin.
        attempt: Number of the attempt.
        span: The range.
        digest: Digest of what was sent.
    """

    mirror: str
    attempt: int
    span: Span
    digest: bytes


class Provenance:
    """Who sent which ranges of the files that are being fetched or have come wrong.

    Changes on the event loop between awaits; what reads files works on values.
    """

    def __init__(self) -> None:
        self._sent: dict[str, list[tuple[str, Span]]] = {}
        self._wrong: dict[str, list[SentRange]] = {}

    def begin(self, file: RemoteFile) -> None:
        """Begin an attempt: forget who sent what before and, at the first one, all evidence."""
        self._sent[file.key] = []
        if file.attempt == 1:
            self._wrong.pop(file.key, None)

    def note(self, file: RemoteFile, mirror: str, span: Span) -> None:
        """Note bytes that came from ``mirror``."""
        self._sent.setdefault(file.key, []).append((mirror, span))

    def sent(self, file: RemoteFile) -> list[tuple[str, Span]]:
        """What came of ``file`` in this attempt."""
        return list(self._sent.get(file.key, ()))

    def end(self, file: RemoteFile) -> None:
        """Forget what came in this attempt."""
        self._sent.pop(file.key, None)

    def keep(self, file: RemoteFile, evidence: Iterable[SentRange]) -> None:
        """Keep what a wrong attempt brought until another one is right."""
        self._wrong.setdefault(file.key, []).extend(evidence)
        while len(self._wrong) > MOST_FILES:
            del self._wrong[next(iter(self._wrong))]

    def take(self, file: RemoteFile) -> list[SentRange]:
        """What wrong attempts at ``file`` have brought; it is forgotten."""
        return self._wrong.pop(file.key, [])


def evidence(descriptor: int, attempt: int, sent: Iterable[tuple[str, Span]]) -> list[SentRange]:
    """The digests of the ranges that mirrors sent, of a file that is wrong; blocking."""
    return [
        SentRange(mirror, attempt, span, digest_of(descriptor, span))
        for mirror, span in _joined(sent)
        if mirror
    ]


def wrong_ranges(descriptor: int, sent: Iterable[SentRange]) -> list[SentRange]:
    """The sent ranges in which a right file has other bytes; blocking."""
    return [each for each in sent if digest_of(descriptor, each.span) != each.digest]


def digest_of(descriptor: int, span: Span) -> bytes:
    """The sha256 of a range of an open file; blocking."""
    digest = hashlib.sha256()
    position = span.start
    while position < span.stop:
        block = os.pread(descriptor, min(STEP_BYTES, span.stop - position), position)
        if not block:
            break
        digest.update(block)
        position += len(block)
    return digest.digest()


def _joined(sent: Iterable[tuple[str, Span]]) -> list[tuple[str, Span]]:
    """Each sender's ranges, without those that were sent twice."""
    spans: defaultdict[str, set[Span]] = defaultdict(set)
    covered = SpanSet()
    for mirror, span in sent:
        for gap in list(covered.gaps(span)):
            spans[mirror].add(gap)
        covered.add(span)
    return [(mirror, span) for mirror, each in spans.items() for span in sorted(each)]
