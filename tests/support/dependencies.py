"""Exports that need something, and what they need, for the test hub."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import yaml

from craftcache.checkpoint.index import dump
from craftcache.checkpoint.reader import read_index
from tests.support.checkpoints import memory_file, saved

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.api import Api
    from tests.support.hub import Repo, TestHub

__all__ = [
    "CODEC",
    "CODEC_FILES",
    "DIFFUSION",
    "MELODY",
    "OTHER_CODEC",
    "PAIR",
    "REFERRING",
    "T5_FILES",
    "WORDS",
    "export",
    "host_codec",
    "host_t5",
    "listed",
    "lm",
    "seen_before",
    "t5",
]

T5_FILES = {
    "config.json": b'{"model_type": "t5"}',
    "model.safetensors": b"weights of t5 " * 500,
    "spiece.model": b"\x0a\x0e\x0a\x05<unk>",
    "tokenizer.json": b'{"version": "1.0"}',
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


def export(language_model: bytes, codec: bytes) -> dict[str, bytes]:
    """The files of a pair."""
    return {"state_dict.bin": language_model, "compression_state_dict.bin": codec}


def _reference(name: str) -> bytes:
    return saved({"pretrained": name, "exported": True, "version": "1.3.0"})


CODEC = saved({"best_state": {}, "xp.cfg": "encodec: {}", "exported": True, "version": "1.3.0"})

PAIR = export(lm(description=t5()), CODEC)
"""Needs t5-base."""

REFERRING = export(lm(description=t5()), _reference("facebook/encodec_32khz"))
"""Needs t5-base and facebook/encodec_32khz."""

MELODY = export(lm(self_wav={"model": "chroma_stem", "chroma_stem": {}}), CODEC)
"""Needs htdemucs."""

WORDS = export(lm(words={"model": "lut", "lut": {"tokenizer": "whitespace"}}), CODEC)
"""Needs a model of spaCy's, which cannot be warmed."""

OTHER_CODEC = saved({"best_state": {}, "xp.cfg": "encodec: {other: 1}"})

DIFFUSION = {"mbd_musicgen_32khz.th": saved({"sample_rate": 32000, "n_bands": 4})}
"""Needs the codec of musicgen-small, and names it nowhere."""


def seen_before(cache_dir: Path) -> None:
    """Let a cache have the indexes of all checkpoints here."""
    indexes = cache_dir / ".craftcache" / "index"
    indexes.mkdir(parents=True)
    for pair in (PAIR, REFERRING, MELODY, WORDS, DIFFUSION):
        for content in pair.values():
            with memory_file(content) as descriptor:
                index = dump(read_index(descriptor))
            (indexes / f"{hashlib.sha256(content).hexdigest()}.json").write_bytes(index)


def host_t5(hub: TestHub, files: Mapping[str, bytes] = T5_FILES, *, private: bool = False) -> Repo:
    """The text encoder where the Hub has it, known under its first name too."""
    hub.rename("t5-base", "google-t5/t5-base")
    repo = hub.repo("google-t5/t5-base", private=private)
    repo.commit({**files, **OTHER_T5_FILES})
    return repo


def host_codec(hub: TestHub, name: str = "facebook/encodec_32khz") -> Repo:
    """A codec of transformers."""
    repo = hub.repo(name)
    repo.commit(CODEC_FILES)
    return repo


def listed(api: Api) -> dict[str, dict[str, Any]]:
    """What is cached, by source."""
    return {model["source"]: model for model in api.get("/models")["models"]}
