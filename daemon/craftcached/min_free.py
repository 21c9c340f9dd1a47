"""How much of the disk stays free: a percentage of it, or a number of bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MinFree"]

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class MinFree:
    """The part of a file system that no fetch may use.

    Attributes:
        value: In percent or in bytes.
        is_percentage: Whether it is in percent.
    """

    value: float
    is_percentage: bool

    @classmethod
    def parse(cls, text: str) -> MinFree:
        """``15%``, or a number of bytes.

        Raises:
            ValueError: It is neither, or more than all.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None or (found[2] and float(found[1]) > 100):
            raise ValueError(f"{text!r} is neither a percentage, like 15%, nor a number of bytes")
        return cls(float(found[1]), bool(found[2]))

    def of(self, total: int) -> int:
        """Bytes of a file system of ``total`` bytes."""
        return int(total * self.value / 100) if self.is_percentage else int(self.value)
