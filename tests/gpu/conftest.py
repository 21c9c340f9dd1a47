from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.gpu.targets import Target, open_target

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def target() -> Iterator[Target]:
    with open_target() as target:
        yield target
        target.link.ring.close()
