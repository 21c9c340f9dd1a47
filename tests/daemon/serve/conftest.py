"""What the tests of the worker socket share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.sockets import FunctionBackend, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.sockets import Serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, FunctionBackend(tmp_path)) as running:
        yield running
