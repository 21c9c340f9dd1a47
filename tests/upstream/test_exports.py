"""``craftcache export make`` writes what AudioCraft's own functions write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from craftcache.exports import make_export
from tests.support.checkpoints import assert_same
from tests.support.exports import training_checkpoint

from .environment import PROGRAMS

if TYPE_CHECKING:
    from pathlib import Path

    from .environment import Upstream

KINDS = ("plain", "fsdp")
"""Of trainings: they keep the best state in different places."""


@pytest.fixture(scope="module")
def exported(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each of KINDS a directory with checkpoints of trainings, exported by AudioCraft."""
    home = tmp_path_factory.mktemp("exported")
    for kind in KINDS:
        (home / kind).mkdir()
        training_checkpoint(home / kind / "lm.th", fsdp=kind == "fsdp")
        training_checkpoint(home / kind / "codec.th")
    upstream.run(
        *(PROGRAMS / "export_functions.py", *KINDS),
        home=home,
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",  # as the functions need from torch 2.6 on
    )
    return home


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("given", "written"),
    [("codec.th", "codec.bin"), ("codec.bin", "copied.bin"), ("dac_44khz", "named.bin")],
    ids=["trained", "exported", "named"],
)
def test_the_result_is_audiocrafts_own(
    exported: Path, tmp_path: Path, kind: str, given: str, written: str
) -> None:
    theirs = exported / kind
    codec = theirs / given
    make_export(theirs / "lm.th", str(codec) if codec.exists() else given, tmp_path / "out")
    assert_same(loaded(tmp_path / "out" / "state_dict.bin"), loaded(theirs / "lm.bin"))
    made = loaded(tmp_path / "out" / "compression_state_dict.bin")
    assert_same(made, loaded(theirs / written))
