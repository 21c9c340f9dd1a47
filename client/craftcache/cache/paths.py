"""Paths with their links resolved."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["real_path"]


def real_path(path: Path) -> Path:
    """The path with all links resolved.

    As ``Path.resolve(strict=True)``, which before Python 3.13 raises RuntimeError for links that
    lead in a circle.

    Raises:
        OSError: Nothing is there, or its links lead in a circle.
    """
    return Path(os.path.realpath(path, strict=True))
