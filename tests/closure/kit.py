"""Exports that need something, and what they need, for the test hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from checkpoints import saved

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hub import Repo, TestHub

__all__ = [
    "CODEC_FILES",
    "LM",
    "PAIR",
    "T5_FILES",
    "export",
    "host_codec",
    "host_t5",
    "reference",
    "t5",
]

WEIGHTS = json.dumps({"__metadata__": {}}).encode()
"""Nothing here reads weights, so they need not be any."""

T5_FILES = {
    "config.json": b'{"model_type": "t5"}',
    "model.safetensors": b"weights of t5 " * 500,
    "spiece.model": b"\x0a\x0e\x0a\x05<unk>",
    "tokenizer.json": b"{}",
    "generation_config.json": b"{}",
}
"""As the Hub has it; what else lies in the repository is not wanted."""

OTHER_T5_FILES = {"pytorch_model.bin": b"the same again " * 500, "README.md": b"# T5"}

CODEC_FILES = {"config.json": b'{"model_type": "encodec"}', "model.safetensors": b"codec" * 900}


def t5(name: str = "t5-base", *, normalize: bool = False) -> dict[str, Any]:
    """A conditioner upon a text encoder, as a configuration has it."""
    return {"model": "t5", "t5": {"name": name, "normalize_text": normalize}}


def lm(**conditioners: object) -> bytes:
    """A language model with these conditioners."""
    config = yaml.safe_dump({"device": "cpu", "conditioners": conditioners})
    return saved({"best_state": {}, "xp.cfg": config, "exported": True, "version": "1.3.0"})


def reference(name: str) -> bytes:
    """A codec that is only named."""
    return saved({"pretrained": name, "exported": True, "version": "1.3.0"})


LM = lm(description=t5())
"""Needs ``t5-base``."""

CODEC = saved({"best_state": {}, "xp.cfg": "encodec: {}", "exported": True, "version": "1.3.0"})

PAIR = {"state_dict.bin": LM, "compression_state_dict.bin": CODEC}


def export(codec: str | None = None, **conditioners: object) -> dict[str, bytes]:
    """A pair with these conditioners, its codec inside or only named."""
    return {
        "state_dict.bin": lm(**conditioners),
        "compression_state_dict.bin": CODEC if codec is None else reference(codec),
    }


def host_t5(hub: TestHub, files: Mapping[str, bytes] = T5_FILES) -> Repo:
    """The text encoder where the Hub has it, known under its first name too."""
    hub.rename("t5-base", "google-t5/t5-base")
    repo = hub.repo("google-t5/t5-base")
    repo.commit({**files, **OTHER_T5_FILES})
    return repo


def host_codec(hub: TestHub, name: str = "facebook/encodec_32khz") -> Repo:
    """A codec of transformers."""
    repo = hub.repo(name)
    repo.commit(CODEC_FILES)
    return repo
