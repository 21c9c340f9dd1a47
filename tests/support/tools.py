"""Which of the tools that some tests need are installed."""

from __future__ import annotations

import shutil

import pytest

__all__ = ["needs"]


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip a test where one of the commands is not installed."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
