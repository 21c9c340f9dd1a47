"""What these tests share: the tree, and which tools they find."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

__all__ = ["ROOT", "needs"]

ROOT = Path(__file__).parents[2]


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip a test where one of the commands is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
