"""Loads models and generates half a second of each, all by AudioCraft's own calls.

Run as ``python generate.py CLASS:NAME...`` by an interpreter that has AudioCraft; CLASS is one of
``audiocraft.models``. Prints as JSON the sha256 of the samples by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import Any

import audiocraft.models
import torch

SECONDS = 0.5
TEXT = "bright bells in the rain"


def main(models: list[str]) -> None:
    """Load and generate, one after the other."""
    made = {}
    for kind, name in (model.split(":") for model in models):
        if kind == "MultiBandDiffusion":
            samples = diffuse()
        else:
            samples = generate(getattr(audiocraft.models, kind).get_pretrained(name, device="cpu"))
        made[name] = hashlib.sha256(samples.numpy().tobytes()).hexdigest()
    print(json.dumps(made))


def generate(model: Any) -> Any:
    """From a text, and from a melody as well where the model takes one."""
    if isinstance(model, audiocraft.models.MAGNeT):  # as long as in its training, in few steps
        model.set_generation_params(decoding_steps=[2, 1, 1, 1])
    else:
        model.set_generation_params(duration=SECONDS)
    torch.manual_seed(7)
    if "self_wav" not in model.lm.condition_provider.conditioners:
        return model.generate([TEXT])
    melody = torch.sin(torch.arange(SECONDS * model.sample_rate) / 20)[None]
    return model.generate_with_chroma([TEXT], melody, model.sample_rate)


@torch.no_grad()
def diffuse() -> Any:
    """From tokens, by models whose names stand in AudioCraft's code."""
    # Their checkpoints hold OmegaConf's objects: from torch 2.6 on AudioCraft loads them only so.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    model = audiocraft.models.MultiBandDiffusion.get_mbd_musicgen(device="cpu")
    codec = model.codec_model
    torch.manual_seed(7)
    shape = (1, codec.num_codebooks, int(SECONDS * codec.frame_rate))
    return model.tokens_to_wav(torch.randint(codec.cardinality, shape))


if __name__ == "__main__":
    main(sys.argv[1:])
