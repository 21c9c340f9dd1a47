"""Fixtures of the daemon's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def no_blocking() -> Iterator[BlockBuster]:
    """Any blocking call of ours on the event loop fails the test."""
    with blockbuster_ctx(("craftcache", "craftcached")) as buster:
        yield buster
