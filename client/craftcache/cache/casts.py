"""The record of a cast: what its files must be, for no manifest names it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from .sealed import check_seal, seal

__all__ = ["CastRecord"]


@dataclass(frozen=True, slots=True)
class CastRecord:
    """A checkpoint in another dtype, made from a verified one.

    Attributes:
        origin_sha256: Of the checkpoint that it was made from.
        dtype: That it was cast to.
        sha256: Of its own bytes.
        size: In bytes.
        index_sha256: Of the bytes of its index.
    """

    origin_sha256: str
    dtype: str
    sha256: str
    size: int
    index_sha256: str

    def dump(self) -> bytes:
        """The record as its file's content."""
        return seal({"version": 1} | asdict(self))

    @classmethod
    def parse(cls, data: bytes, origin_sha256: str, dtype: str) -> CastRecord:
        """Read the record of the cast of that checkpoint to that dtype.

        Raises:
            ValueError: It is damaged, or another's.
        """
        document = json.loads(data)
        try:
            check_seal(document)
            if document["version"] != 1:
                raise ValueError("it is of another version")
            made = cls(**{name: document[name] for name in cls.__slots__})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no record: {error!r}") from error
        if (made.origin_sha256, made.dtype) != (origin_sha256, dtype):
            raise ValueError("it is another's")
        return made
