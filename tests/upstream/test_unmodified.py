"""AudioCraft as it is published generates, on a node with no network, what it would with one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conftest import DIFFUSION, MODELS
from .environment import PROGRAMS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import DaemonProcess

    from .environment import Upstream
    from .origin import Origin

EACH = {**MODELS, DIFFUSION: "MultiBandDiffusion"}

GENERATE: tuple[str | Path, ...] = (
    PROGRAMS / "generate.py",
    *(f"{kind}:{name}" for name, kind in EACH.items()),
)


@pytest.fixture(scope="module")
def expected(
    upstream: Upstream,
    repositories: Path,
    origin: Origin,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What it generates from the plain directories, and the network for what else it wants."""
    home = tmp_path_factory.mktemp("online")
    (home / "org").symlink_to(repositories / "org")
    samples: dict[str, str] = upstream.run(*GENERATE, home=home, **origin.environment)
    return samples


@pytest.fixture(scope="module")
def offline(
    upstream: Upstream, warm_node: DaemonProcess, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What it generates with no network, and with what ``craftcache env`` prints."""
    home = tmp_path_factory.mktemp("offline")
    samples: dict[str, str] = upstream.run_offline(*GENERATE, home=home, node=warm_node)
    return samples


@pytest.mark.parametrize("model", EACH)
def test_the_samples_are_the_same(
    expected: dict[str, str], offline: dict[str, str], model: str
) -> None:
    assert offline[model] == expected[model]
