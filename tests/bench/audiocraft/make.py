"""Makes an export of musicgen-small's shapes with AudioCraft's own configuration and builders.

Run as ``python make.py CONFIGURATIONS DIRECTORY`` by an interpreter that has AudioCraft.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from audiocraft.models import builders
from audiocraft.utils.export import (
    export_encodec,
    export_lm,
    export_pretrained_compression_model,
)
from hydra import compose, initialize_config_dir

CONDITIONERS = {
    "description": {"model": "lut", "lut": {"n_bins": 1000, "dim": 768, "tokenizer": "noop"}}
}
"""As wide as T5, which would be a third model beside the pair, loaded alike by all contenders."""


def main(configurations: str, directory: Path) -> None:
    """Make the pair; in half precision the one, in single precision the other, as published."""
    with initialize_config_dir(configurations, version_base="1.1"):
        common = ["device=cpu", "dset=default"]
        music = compose("config", overrides=["solver=musicgen/musicgen_base_32khz", *common])
        sound = compose("config", overrides=["solver=compression/encodec_musicgen_32khz", *common])
    music.conditioners = CONDITIONERS
    sound.rvq.kmeans_init = False  # or its codebooks were to be learnt from the first samples
    training, codec = directory / "training.th", directory / "codec.bin"
    for config, model, export, target in (
        (sound, builders.get_compression_model(sound), export_encodec, codec),
        (music, builders.get_lm_model(music).half(), export_lm, directory / "state_dict.bin"),
    ):
        best = {"model": model.state_dict()}
        torch.save({"best_state": best, "fsdp_best_state": {}, "xp.cfg": config}, training)
        export(training, target)
        training.unlink()
    export_pretrained_compression_model(str(codec), directory / "compression_state_dict.bin")
    codec.unlink()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
