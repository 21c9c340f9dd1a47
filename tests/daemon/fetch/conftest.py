"""What the tests of mirrors share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.hub import TestHub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def mirror() -> AsyncIterator[TestHub]:
    async with TestHub() as running:
        yield running
