"""A worker looks into a checkpoint itself, as the daemon would have."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from omegaconf import OmegaConf

from craftcache.checkpoint.inspection import inspect
from craftcache.errors import NotACheckpoint
from tests.support.checkpoints import saved

if TYPE_CHECKING:
    from pathlib import Path

INSPECT = """
import resource, sys
from pathlib import Path
from craftcache.checkpoint.inspection import inspect
if limit := int(sys.argv[2]):
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + limit, -1))
try:
    inspect(Path(sys.argv[1]), source="org/name")
except BaseException as error:
    print(type(error).__name__)
print("torch" in sys.modules)
"""


def looked_at(path: Path, *, memory: int = 0) -> list[str]:
    """What a process of its own prints that may take so many bytes more, where that is limited."""
    command = [sys.executable, "-c", INSPECT, str(path), str(memory)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("checkpoint", "imports"),
    [({"w": torch.ones(3)}, "False"), ({"cfg": OmegaConf.create({"a": 1})}, "True")],
    ids=["indexable", "omegaconf"],
)
def test_torch_is_imported_for_what_no_index_can_hold(
    tmp_path: Path, checkpoint: object, imports: str
) -> None:
    (tmp_path / "x.th").write_bytes(saved(checkpoint))
    assert looked_at(tmp_path / "x.th") == [imports]


def test_too_little_memory_is_no_fault_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.th").write_bytes(saved({"text": "x" * 20_000_000}))
    assert looked_at(tmp_path / "x.th") == ["False"]
    assert looked_at(tmp_path / "x.th", memory=30_000_000) == ["MemoryError", "False"]


def test_what_is_no_checkpoint_is_said_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "x.th").write_bytes(b"<!doctype html><title>Sign in</title>")
    with pytest.raises(NotACheckpoint, match=r"^org/name: it is an HTML page"):
        inspect(tmp_path / "x.th", source="org/name")
