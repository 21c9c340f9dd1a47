"""What is loaded in the soak: exports that say themselves which model and version they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tests.support.checkpoints import saved

if TYPE_CHECKING:
    from craftcache import Export

__all__ = ["FILENAMES", "VERSIONS", "WATCHED", "WrongTensor", "check", "export_files"]

FILENAMES = ("state_dict.bin", "compression_state_dict.bin")
VERSIONS = 10_000
"""More versions than a model will have."""

WATCHED = 900
"""Number of the model that a watched directory has."""

FLOATS = (48 * 1024, 16 * 1024)


class WrongTensor(Exception):
    """What was loaded is not what any version of the model holds."""


def export_files(model: int, version: int) -> dict[str, bytes]:
    """Both files of a version of a model, all of whose numbers are that version."""
    value = float(model * VERSIONS + version)
    return {
        name: saved({"best_state": {"weight": torch.full((count,), value)}})
        for name, count in zip(FILENAMES, FLOATS, strict=True)
    }


def check(export: Export, model: int) -> int:
    """The version of a loaded export.

    Raises:
        WrongTensor: It is another model's, or of two versions, or of none.
    """
    found = set()
    for part, count in ((export.lm, FLOATS[0]), (export.compression, FLOATS[1])):
        weight = part["best_state"]["weight"]
        if weight.shape != (count,) or bool((weight != weight[0]).any()):
            raise WrongTensor(f"model {model} has {weight.shape} of different numbers")
        found.add(int(weight[0]))
    if len(found) != 1 or found.pop() // VERSIONS != model:
        raise WrongTensor(f"model {model} is not of one version of it: {found}")
    return int(export.lm["best_state"]["weight"][0]) % VERSIONS
