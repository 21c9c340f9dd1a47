"""What the test hub is tested with: a plain HTTP client, and a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.support.hub import Data, TestHub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LARGE = bytes(range(256)) * 64
FILES = {"state_dict.bin": LARGE, "config.json": b'{"a": 1}'}


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


PATH = "/dir/state_dict.bin"


@pytest.fixture
def url(hub: TestHub) -> str:
    """Of a plain file with LARGE in it."""
    hub.files[PATH] = Data(LARGE)
    return hub.cdn_url(PATH)
