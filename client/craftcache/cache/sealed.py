"""Small JSON documents that carry a digest of themselves, so that rot in one is noticed.

It guards against accidents and against edits by hand, not against whoever can write to the cache:
against those stand the owner and the mode of the file.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CHECKSUM", "seal", "check_seal"]

_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

CHECKSUM: Final = "checksum"
"""The key of the digest, which is over all others, in whatever order and form they stand."""


def seal(fields: Mapping[str, Any]) -> bytes:
    """The document of these fields, with its checksum."""
    return json.dumps({**fields, CHECKSUM: _digest(fields)}, indent=1).encode()


def check_seal(document: Mapping[str, Any]) -> None:
    """Compare a document's checksum with its content.

    Raises:
        ValueError: They differ.
    """
    content = {key: value for key, value in document.items() if key != CHECKSUM}
    if document.get(CHECKSUM) != _digest(content):
        raise ValueError("its checksum is not that of its content")


def _digest(fields: Mapping[str, Any]) -> str:
    canonical = _CANONICAL.encode(fields)
    return hashlib.sha256(canonical.encode()).hexdigest()
