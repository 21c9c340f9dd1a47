"""Fixtures of the command line's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.command import Node, running_node

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def node() -> Iterator[Node]:
    """Shared by all tests here, so each uses repositories of its own for what it changes."""
    with running_node() as running:
        yield running


@pytest.fixture
def commit(node: Node) -> str:
    """The revision of ``org/model``."""
    with node.daemon.client() as client:
        return next(m.revision for m in client.models() if m.source == "org/model")
