"""Whether an answer's body is compressed, by its Content-Encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from craftcache.errors import IntegrityError
from craftcache.sources import shown_url

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_uncompressed"]

_PLAIN = frozenset({"", "identity", "aws-chunked", "none", "binary", "utf-8"})
"""What stands there of bodies that are the file itself: ``aws-chunked`` is how it came into the
object store, which hands the word out again; the last three are no codings, but set by uploads."""


def check_uncompressed(encodings: Iterable[str], *, url: str, source: str) -> None:
    """Raise IntegrityError for a body that is not the file itself.

    Args:
        encodings: All values of Content-Encoding.
        url: URL that answered.
        source: As the error names it.
    """
    named = (item.strip().lower() for value in encodings for item in value.split(","))
    codings = [item for item in named if item not in _PLAIN]
    if codings:
        shown = codings[0][:20] if codings[0].isprintable() else "?"
        raise IntegrityError(
            f"{shown_url(url)} sends the file compressed ({shown}) although asked not to",
            source=source,
            hint="Tell the publisher; the promised bytes cannot be had there",
        )
