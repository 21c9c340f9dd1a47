"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        check: Name of the check, stable across releases.
        state: ``ok``; ``warning`` where something is slower or less than it could be; ``problem``
            where something does not work.
        message: Sentence that says what was found.
        remedy: Advice; empty where nothing has to be done.
    """

    check: str
    state: Literal["ok", "warning", "problem"]
    message: str
    remedy: str = ""
