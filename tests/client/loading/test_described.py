"""Local files have no index: on their way to a device our own reader describes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.checkpoint.tensors import build
from craftcache.loading.export import _described
from tests.support.checkpoints import assert_same, loaded, saved

if TYPE_CHECKING:
    from pathlib import Path


def opened(path: Path, content: bytes) -> OpenFile:
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    return OpenFile(FileInfo(path.name, len(content), str(path)), fd, mapped=False)


def test_a_checkpoint_is_described_as_the_daemon_would(tmp_path: Path) -> None:
    content = saved({"best_state": {"weight": torch.randn(3, 4)}, "epoch": 3})
    file = opened(tmp_path / "state_dict.bin", content)
    index = _described(file)
    assert index is not None
    assert_same(build(index, file.descriptor, device=torch.device("cpu")), loaded(content))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint",
        saved({"weight": torch.eye(3).to_sparse()}),  # no index can say it
        saved({"weight": torch.randn(300)})[:1500],
    ],
)
def test_what_only_torch_can_tell_of_is_left_to_it(tmp_path: Path, content: bytes) -> None:
    assert _described(opened(tmp_path / "state_dict.bin", content)) is None
