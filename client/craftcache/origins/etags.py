"""Validators of HTTP: which of them tell that a file has the very same bytes."""

from __future__ import annotations

__all__ = ["strong_etag"]


def strong_etag(header: str | None) -> str | None:
    """The validator of an ETag header, unquoted; None of a weak, a malformed one or none.

    Only what is quoted can be sent back in If-Range.
    """
    if header is None or len(header) < 3 or not (header[0] == header[-1] == '"'):
        return None
    return header[1:-1]
