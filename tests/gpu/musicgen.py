"""Models of MusicGen's shape: made, loaded on a device, and looked at.

Run by an interpreter that has AudioCraft, as ``python -m tests.gpu.musicgen make DIRECTORY``, which
exports the pairs ``org/small`` and ``org/large`` to directories of these names, and as ``... theirs
DEVICE`` or ``... ours DEVICE``, which loads both by AudioCraft's own call, as it is or with
craftcache installed. The environment says in which cache they are, and that there is no network.
Prints as JSON what it found.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from audiocraft import __version__
from audiocraft.models import MusicGen, builders
from omegaconf import DictConfig, OmegaConf

import craftcache
import craftcache.audiocraft

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED: Final = 7
SECONDS: Final = 0.5
SAMPLE_INTERVAL_S: Final = 0.002

STAGING_BYTES: Final = 32 << 20
"""For copies to a device: so little that it is not mistaken for a copy of the model."""

LM: Final[dict[str, Any]] = {
    "device": "cpu",
    "dtype": "float32",
    "lm_model": "transformer_lm",
    "transformer_lm": {
        "num_heads": 4,
        "hidden_scale": 4,
        "n_q": 4,
        "dropout": 0.0,
        "emb_lr": None,
        "activation": "gelu",
        "norm_first": True,
        "bias_ff": False,
        "bias_attn": False,
        "bias_proj": False,
        "past_context": None,
        "causal": True,
        "custom": False,
        "memory_efficient": True,
        "attention_as_float32": False,
        "layer_scale": None,
        "positional_embedding": "sin",
        "xpos": False,
        "checkpointing": "none",
        "weight_init": "gaussian",
        "depthwise_init": "current",
        "zero_bias_init": True,
        "norm": "layer_norm",
        "cross_attention": False,
        "qk_layer_norm": False,
        "qk_layer_norm_cross": False,
        "attention_dropout": None,
        "kv_repeat": 1,
        "two_step_cfg": False,
    },
    "codebooks_pattern": {
        "modeling": "delay",
        "delay": {"delays": [0, 1, 2, 3], "flatten_first": 0, "empty_initial": 0},
    },
    "attribute_dropout": {},
    "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
    "conditioners": {
        "description": {"model": "lut", "lut": {"n_bins": 32, "dim": 8, "tokenizer": "noop"}}
    },
    "fuser": {
        "cross_attention_pos_emb": False,
        "cross_attention_pos_emb_scale": 1,
        "sum": [],
        "prepend": [],
        "cross": ["description"],
        "input_interpolate": [],
    },
    "dataset": {"segment_duration": 30},
    "interleave_stereo_codebooks": {"use": False, "per_timestep": False},
}
"""AudioCraft's ``musicgen/musicgen_base_32khz``, but for the sizes and the text encoder."""

CODEC: Final[dict[str, Any]] = {
    "device": "cpu",
    "compression_model": "encodec",
    "encodec": {
        "autoencoder": "seanet",
        "quantizer": "rvq",
        "sample_rate": 32000,
        "channels": 1,
        "causal": False,
        "renormalize": False,
    },
    "seanet": {
        "channels": 1,
        "causal": False,
        "n_residual_layers": 1,
        "ratios": [8, 5, 4, 4],
        "activation": "ELU",
        "activation_params": {"alpha": 1.0},
        "norm": "weight_norm",
        "norm_params": {},
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 7,
        "dilation_base": 2,
        "pad_mode": "constant",
        "true_skip": True,
        "compress": 2,
        "lstm": 2,
        "disable_norm_outer_blocks": 0,
        "decoder": {
            "trim_right_ratio": 1.0,
            "final_activation": None,
            "final_activation_params": None,
        },
        "encoder": {},
    },
    "rvq": {
        "n_q": 4,
        "q_dropout": False,
        "decay": 0.99,
        "kmeans_init": False,
        "kmeans_iters": 50,
        "threshold_ema_dead_code": 2,
        "orthogonal_reg_weight": 0.0,
        "orthogonal_reg_active_codes_only": False,
    },
    "sample_rate": 32000,
    "channels": 1,
}
"""AudioCraft's ``compression/encodec_musicgen_32khz``, but for the sizes."""

SIZES: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "org/small": (
        {"transformer_lm": {"dim": 64, "num_layers": 2, "card": 256}},
        {"seanet": {"dimension": 16, "n_filters": 4}, "rvq": {"bins": 256}},
    ),
    "org/large": (
        {"transformer_lm": {"dim": 1024, "num_layers": 12, "card": 2048}},
        {"seanet": {"dimension": 128, "n_filters": 32}, "rvq": {"bins": 2048}},
    ),
}
"""Of the language model and the codec; the large ones come to half a gigabyte."""


def make(directory: Path) -> dict[str, Any]:
    """Export the pairs; the size of the large language model's checkpoint."""
    for name, (lm_sizes, codec_sizes) in SIZES.items():
        torch.manual_seed(SEED)
        lm = configuration(LM, lm_sizes)
        repository = directory / name
        export(builders.get_lm_model(lm).half(), lm, repository / "state_dict.bin")
        codec = configuration(CODEC, codec_sizes)
        model = builders.get_compression_model(codec)
        export(model, codec, repository / "compression_state_dict.bin")
    return {"lm_bytes": (directory / "org/large/state_dict.bin").stat().st_size}


def configuration(base: dict[str, Any], sizes: dict[str, Any]) -> DictConfig:
    """Of a model of these sizes."""
    config = OmegaConf.merge(base, sizes)
    assert isinstance(config, DictConfig)
    return config


def export(model: torch.nn.Module, config: DictConfig, path: Path) -> None:
    """Write a model as AudioCraft's own functions export it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exported = {
        "best_state": model.state_dict(),
        "xp.cfg": OmegaConf.to_yaml(config),
        "version": __version__,
        "exported": True,
    }
    torch.save(exported, path)


def look(device: str) -> dict[str, Any]:
    """Load the pairs; what they are, what the large one took, and what the small one generates."""
    small = MusicGen.get_pretrained("org/small", device=device)  # so that all libraries are ready
    with memory_growth() as grown:
        large = MusicGen.get_pretrained("org/large", device=device)
    on_cpu = {
        part: sum(t.nbytes for t in module.state_dict().values() if t.device.type == "cpu")
        for part, module in (("lm", large.lm), ("compression", large.compression_model))
    }
    tensors = {
        name: describe(model) for name, model in (("org/small", small), ("org/large", large))
    }
    return {"grown": grown, "on_cpu": on_cpu, "tensors": tensors, "samples": generate(small)}


@contextmanager
def memory_growth() -> Iterator[dict[str, int]]:
    """By how much each kind of this process's memory is larger at its peak than before: bytes."""
    before, grown, ended = resident(), dict.fromkeys(resident(), 0), threading.Event()

    def watch() -> None:
        while True:
            is_last = ended.wait(SAMPLE_INTERVAL_S)
            for kind, nbytes in resident().items():
                grown[kind] = max(grown[kind], nbytes - before[kind])
            if is_last:
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield grown
    finally:
        ended.set()
        watching.join()


def resident() -> dict[str, int]:
    """Resident memory of this process, in bytes: its own, of files, and shared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.startswith("Rss"))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}


def describe(model: Any) -> dict[str, str]:
    """All that is to be seen of each parameter and buffer, its values by their sha256."""
    described = {}
    for part, module in (("lm", model.lm), ("compression", model.compression_model)):
        for tensors in (module.named_parameters, module.named_buffers):
            for path, tensor in tensors(remove_duplicate=False):
                layout = (tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride())
                autograd = (type(tensor).__name__, tensor.requires_grad, tensor.is_leaf)
                described[f"{part}.{path}"] = f"{layout} {autograd} {digest(tensor)}"
    return described


def digest(tensor: torch.Tensor) -> str:
    """The sha256 of a tensor's values."""
    values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()


def generate(model: Any) -> dict[str, Any]:
    """Samples: their sha256, and how many different values they have."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    model.set_generation_params(duration=SECONDS)
    torch.manual_seed(SEED)
    samples = model.generate(["bright bells in the rain"])
    return {
        "sha256": digest(samples),
        "device": samples.device.type,
        "shape": list(samples.shape),
        "finite": bool(samples.isfinite().all()),
        "different": samples.unique().numel(),
    }


def main(way: str, argument: str) -> None:
    """The command line."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS looks at it at its first product
    if way == "ours":
        craftcache.set_staging_limit(STAGING_BYTES)
        craftcache.audiocraft.install()
    print(json.dumps(make(Path(argument)) if way == "make" else look(argument)))


if __name__ == "__main__":
    main(*sys.argv[1:])
