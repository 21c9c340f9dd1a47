"""The README's first example, on a machine that has nothing but a copy of a warm cache."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .environment import Node

if TYPE_CHECKING:
    from tests.support.daemons import DaemonProcess

    from .environment import Upstream
    from .origin import Origin

README = Path(__file__).parents[2] / "README.md"
MODEL = "facebook/musicgen-melody"
SECONDS = 8


@pytest.fixture(scope="module")
def program() -> str:
    """What the README calls infer.py."""
    section = README.read_text().partition("### AudioCraft where there is no network\n")[2]
    example = re.search(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert example is not None
    assert MODEL in example[1]
    return example[1]


@pytest.fixture(scope="module")
def copied(
    origin: Origin,
    repositories: Path,
    warm_node: DaemonProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A copy of the cache of a node where the model was warmed."""
    pair = {path.name: path for path in (repositories / "org" / "melody").iterdir()}
    origin.hub.repo(MODEL).commit(pair)
    with warm_node.client() as client:
        client.warm(MODEL)
    cache = tmp_path_factory.mktemp("copied") / "cache"
    shutil.copytree(warm_node.cache_dir, cache, symlinks=True)
    return cache


@pytest.mark.parametrize("options", [(), ("--patch-audiocraft",)])
def test_it_runs_as_it_stands(
    upstream: Upstream, program: str, copied: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    infer = tmp_path / "infer.py"
    infer.write_text(program + "print([*samples.shape, model.sample_rate])\n")
    node = Node(tmp_path / "none", copied)
    batch, channels, length, rate = upstream.run_offline(
        infer, home=tmp_path, node=node, options=options
    )
    assert (batch, channels, length) == (1, 1, SECONDS * rate)
