"""Makes tiny exports of each kind with AudioCraft's own configuration, builders and functions.

Run as ``python exports.py CONFIGURATIONS DIRECTORY`` by an interpreter that has AudioCraft. What is
made lies under DIRECTORY as it would on the Hub, one directory for each repository's id.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece
import torch
from audiocraft.models import builders
from audiocraft.utils.export import (
    export_encodec,
    export_lm,
    export_pretrained_compression_model,
)
from hydra import compose, initialize_config_dir
from transformers import EncodecConfig, EncodecModel, T5Config, T5EncoderModel, T5Tokenizer

if TYPE_CHECKING:
    from omegaconf import DictConfig

CARD = 256
"""Entries of a codebook; generation looks at the best 250."""

HUB_CODEC = "facebook/encodec_32khz"

DIFFUSION = "facebook/multiband-diffusion/mbd_musicgen_32khz.th"
DIFFUSION_CODEC = "facebook/musicgen-small/compression_state_dict.bin"
"""The one that goes with it, by its name in AudioCraft's code."""

TINY_LM = [
    *("device=cpu", "dset=default", "channels=1"),
    *("transformer_lm.dim=16", "transformer_lm.num_heads=2", "transformer_lm.num_layers=2"),
    *(f"transformer_lm.card={CARD}", "transformer_lm.memory_efficient=false"),
]

TINY_CODEC = [
    *("device=cpu", "dset=default", f"rvq.bins={CARD}", "rvq.kmeans_init=false"),
    *("seanet.n_filters=2", "seanet.dimension=8", "seanet.lstm=0"),
]

TOKEN_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
"""As T5 has them."""

TINY_DIFFUSION = [
    *("device=cpu", "dset=default", "processor.use=true", "processor.n_bands=2"),
    *("diffusion_unet.hidden=4", "diffusion_unet.depth=2", "diffusion_unet.norm_groups=2"),
    "diffusion_unet.codec_dim=8",
]

LUT = {"description": {"model": "lut", "lut": {"n_bins": 32, "dim": 8, "tokenizer": "noop"}}}
"""Conditioners that need no other model."""


def main(configurations: Path, directory: Path) -> None:
    """Make all of them."""
    os.chdir(directory)  # where the builders, too, find the text encoders, by their directories
    text_encoder("t5-small", width=512)
    text_encoder("t5-large", width=1024)
    with initialize_config_dir(str(configurations), version_base="1.1"):
        exports()
    hub_codec(HUB_CODEC)  # the last: a directory of that name would be exported itself


def exports() -> None:
    """What each kind of model is published as."""
    music = codec("compression/encodec_musicgen_32khz")
    sound = codec("compression/encodec_audiogen_16khz")
    musicgen = "musicgen/musicgen_base_32khz"
    small_t5 = "conditioners.description.t5.name=t5-small"
    short_chroma = "conditioners.self_wav.chroma_stem.radix2_exp=12"
    one_second = "dataset.segment_duration=1"
    unrestricted = "transformer_lm.subcodes_context=-1"  # the restricted one needs xformers
    export("org/lut", music, musicgen, conditioners=LUT)
    export("org/reference", HUB_CODEC, musicgen, conditioners=LUT)
    export("org/text", music, musicgen, small_t5)
    export("org/melody", music, "musicgen/musicgen_melody_32khz", small_t5, short_chroma)
    export("org/sound", sound, "audiogen/audiogen_base_16khz")
    export("org/magnet", music, "magnet/magnet_32khz", small_t5, one_second, unrestricted)
    export_pretrained_compression_model(music, DIFFUSION_CODEC)
    diffusion(DIFFUSION, bands=2)


def export(repo_id: str, codec: str, solver: str, *overrides: str, **changed: Any) -> None:
    """Export a language model that has not been trained, with its codec."""
    config = configuration(solver, *TINY_LM, *overrides)
    config.update(changed)
    torch.manual_seed(0)
    save_training("lm.th", config, builders.get_lm_model(config).half())
    export_lm("lm.th", Path(repo_id, "state_dict.bin"))
    export_pretrained_compression_model(codec, Path(repo_id, "compression_state_dict.bin"))


def diffusion(checkpoint: str, *, bands: int) -> None:
    """Save as many diffusion models that have not been trained as load_diffusion_models reads."""
    config = configuration("diffusion/encodec_24khz", *TINY_DIFFUSION)
    package: dict[str | int, Any] = {"sample_rate": 32000, "n_bands": bands}
    torch.manual_seed(0)
    for band in range(bands):
        processor = builders.get_processor(config.processor, sample_rate=32000)
        processor.project_sample(torch.randn(1, 1, 32000))  # measures its bands
        package[band] = {
            "cfg": config,
            "model_state": builders.get_diffusion_model(config).state_dict(),
            "processor_state": processor.state_dict(),
        }
    Path(checkpoint).parent.mkdir(parents=True)
    torch.save(package, checkpoint)


def codec(solver: str) -> str:
    """Export a codec that has not been trained; returns its file."""
    config = configuration(solver, *TINY_CODEC)
    torch.manual_seed(0)
    save_training("codec.th", config, builders.get_compression_model(config))
    return str(export_encodec("codec.th", f"{config.sample_rate}.bin"))


def configuration(solver: str, *overrides: str) -> DictConfig:
    """AudioCraft's own."""
    composed: DictConfig = compose("config", overrides=[f"solver={solver}", *overrides])
    return composed


def save_training(checkpoint: str, config: DictConfig, model: torch.nn.Module) -> None:
    """Write as much of a training's checkpoint as is exported."""
    best = {"model": model.state_dict()}
    torch.save({"best_state": best, "fsdp_best_state": {}, "xp.cfg": config}, checkpoint)


def text_encoder(name: str, *, width: int) -> None:
    """A T5 and its tokenizer, as their repository has them."""
    Path(name).mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a calm song with drums", "bright bells in the rain"] * 8),
        model_prefix=f"{name}/spiece",
        vocab_size=32,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
        **TOKEN_IDS,
    )
    Path(name, "spiece.vocab").unlink()
    tokenizer = T5Tokenizer.from_pretrained(name)
    tokenizer.save_pretrained(name)
    torch.manual_seed(0)
    shape = {"d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=len(tokenizer), **shape)).save_pretrained(name)


def hub_codec(name: str) -> None:
    """A codec in transformers' format."""
    torch.manual_seed(0)
    config = EncodecConfig(
        target_bandwidths=[2.0],  # kbit/s: 4 codebooks of 10 bits, 50 times a second
        sampling_rate=32000,
        codebook_size=1024,  # 10 bits are what transformers 4 takes for granted
        codebook_dim=8,
        hidden_size=8,
        num_filters=4,
        num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4, 4],
    )
    EncodecModel(config).save_pretrained(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
