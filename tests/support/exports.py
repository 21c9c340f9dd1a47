"""Training checkpoints as AudioCraft's solvers write them, small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {
    "solver": "musicgen",
    "sample_rate": 32000,
    "card": 2048,
    "transformer_lm": {"dim": 16, "n_q": 4, "card": "${card}"},
    "conditioners": {"description": {"model": "t5", "t5": {"name": "t5-base"}}, "args": {"p": 1}},
}


def model(value: float) -> dict[str, torch.Tensor]:
    return {"emb.weight": torch.full((8, 4), value).half(), "out.bias": torch.full((4,), value)}


def training_checkpoint(path: Path, *, fsdp: bool = False, config: object = None) -> Path:
    """A checkpoint.th of a run; of FSDP the best state stands elsewhere."""
    best = {"model": model(1.0)}
    package: dict[str, Any] = {
        "history": [{"train": {"ce": 1.5}}],
        "xp.cfg": OmegaConf.create(CONFIG) if config is None else config,
        "xp.sig": "abcdef",
        "model": model(0.5),
        "best_state": {} if fsdp else best,
        "fsdp_best_state": best if fsdp else {},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
    }
    torch.save(package, path)
    return path
