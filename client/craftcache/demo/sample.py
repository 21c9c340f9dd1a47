"""A sample export: AudioCraft's file names, keys, nesting and dtypes, with random weights.

The language model is MusicGen's transformer, the codec EnCodec's SEANet at 32 kHz, both narrower
than any published one. The same bytes come out every time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from craftcache.sources import FILENAMES

from .worker import digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["LanguageModel", "Codec", "make_sample", "write_sample"]

AUDIOCRAFT_VERSION = "1.3.0"
"""The release whose exports these look like."""

SEED = 32_000

_Shapes: TypeAlias = "Iterator[tuple[str, tuple[int, ...]]]"


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """The shape of a transformer over the codec's tokens, conditioned by a look-up table.

    Attributes:
        dim: Width.
        layers: Depth.
        codebooks: Streams of tokens.
        card: Tokens of each stream.
        bins: Rows of the look-up table.
        bin_dim: Width of the look-up table.
    """

    dim: int = 512
    layers: int = 4
    codebooks: int = 4
    card: int = 2048
    bins: int = 1024
    bin_dim: int = 64

    def shapes(self) -> _Shapes:
        """Every tensor's key and shape, in the order of the state dict."""
        yield from self._conditioner()
        for number in range(self.codebooks):
            yield f"emb.{number}.weight", (self.card + 1, self.dim)
        for number in range(self.layers):
            yield from self._layer(f"transformer.layers.{number}")
        yield "out_norm.weight", (self.dim,)
        yield "out_norm.bias", (self.dim,)
        for number in range(self.codebooks):
            yield f"linears.{number}.weight", (self.card, self.dim)

    def config(self) -> str:
        """What the training's configuration says of the model, as YAML."""
        return (
            "solver: musicgen\ndevice: cpu\ndtype: float16\nsample_rate: 32000\nchannels: 1\n"
            "lm_model: transformer_lm\n"
            f"transformer_lm:\n  dim: {self.dim}\n  num_heads: {self.dim // 64}\n"
            f"  num_layers: {self.layers}\n  n_q: {self.codebooks}\n  card: {self.card}\n"
            "conditioners:\n  description:\n    model: lut\n    lut:\n"
            f"      n_bins: {self.bins}\n      dim: {self.bin_dim}\n      tokenizer: noop\n"
        )

    def _conditioner(self) -> _Shapes:
        prefix = "condition_provider.conditioners.description"
        yield f"{prefix}.output_proj.weight", (self.dim, self.bin_dim)
        yield f"{prefix}.output_proj.bias", (self.dim,)
        yield f"{prefix}.embed.weight", (self.bins, self.bin_dim)

    def _layer(self, prefix: str) -> _Shapes:
        dim = self.dim
        yield f"{prefix}.self_attn.in_proj_weight", (3 * dim, dim)
        yield f"{prefix}.self_attn.out_proj.weight", (dim, dim)
        yield f"{prefix}.linear1.weight", (4 * dim, dim)
        yield f"{prefix}.linear2.weight", (dim, 4 * dim)
        for norm in ("norm1", "norm2"):
            yield f"{prefix}.{norm}.weight", (dim,)
            yield f"{prefix}.{norm}.bias", (dim,)
        yield f"{prefix}.cross_attention.in_proj_weight", (3 * dim, dim)
        yield f"{prefix}.cross_attention.out_proj.weight", (dim, dim)
        yield f"{prefix}.norm_cross.weight", (dim,)
        yield f"{prefix}.norm_cross.bias", (dim,)


@dataclass(frozen=True, slots=True)
class Codec:
    """The shape of a SEANet encoder and decoder with a residual quantizer between them.

    Attributes:
        filters: Channels of the first convolution; each stage doubles them.
        dimension: Width of the latent space.
        ratios: Strides of the decoder's stages; the encoder has them the other way round.
        codebooks: Number of the quantizer's codebooks.
        card: Entries of each codebook.
    """

    filters: int = 16
    dimension: int = 128
    ratios: tuple[int, ...] = (8, 5, 4, 4)
    codebooks: int = 4
    card: int = 2048

    def shapes(self) -> _Shapes:
        """Every tensor's key and shape, in the order of the state dict."""
        yield from self._encoder()
        yield from self._decoder()
        for number in range(self.codebooks):
            prefix = f"quantizer.vq.layers.{number}._codebook"
            yield f"{prefix}.inited", (1,)
            yield f"{prefix}.cluster_size", (self.card,)
            yield f"{prefix}.embed", (self.card, self.dimension)
            yield f"{prefix}.embed_avg", (self.card, self.dimension)

    def config(self) -> str:
        """What the training's configuration says of the model, as YAML."""
        return (
            "solver: compression\ndevice: cpu\ndtype: float32\nsample_rate: 32000\nchannels: 1\n"
            "compression_model: encodec\n"
            f"seanet:\n  n_filters: {self.filters}\n  dimension: {self.dimension}\n"
            f"  ratios: {list(self.ratios)}\n  lstm: 2\n"
            f"rvq:\n  n_q: {self.codebooks}\n  bins: {self.card}\n"
        )

    def _encoder(self) -> _Shapes:
        width, place = self.filters, 1
        yield from _convolution("encoder.model.0.conv.conv", 1, width, 7)
        for ratio in reversed(self.ratios):
            yield from _residual(f"encoder.model.{place}", width)
            down = f"encoder.model.{place + 2}.conv.conv"
            yield from _convolution(down, width, 2 * width, 2 * ratio)
            width, place = 2 * width, place + 3
        yield from _lstm(f"encoder.model.{place}.lstm", width)
        yield from _convolution(f"encoder.model.{place + 2}.conv.conv", width, self.dimension, 7)

    def _decoder(self) -> _Shapes:
        width, place = self.filters * 2 ** len(self.ratios), 3
        yield from _convolution("decoder.model.0.conv.conv", self.dimension, width, 7)
        yield from _lstm("decoder.model.1.lstm", width)
        for ratio in self.ratios:
            up = f"decoder.model.{place}.convtr.convtr"
            yield f"{up}.bias", (width // 2,)
            yield f"{up}.weight_g", (width, 1, 1)
            yield f"{up}.weight_v", (width, width // 2, 2 * ratio)
            width, place = width // 2, place + 3
            yield from _residual(f"decoder.model.{place - 2}", width)
        yield from _convolution(f"decoder.model.{place}.conv.conv", width, 1, 7)


def make_sample(directory: Path) -> tuple[int, str]:
    """Write the sample; returns the bytes of its files, and the digest of its tensors."""
    size = write_sample(directory)
    loaded = (torch.load(directory / name, weights_only=True) for name in FILENAMES.values())
    return size, digest(*loaded)


def write_sample(directory: Path) -> int:
    """Write the sample's pair of files into ``directory``; returns the bytes of both."""
    random = torch.Generator().manual_seed(SEED)
    lm, codec = LanguageModel(), Codec()
    exports = {
        FILENAMES["lm"]: _export(
            {key: _weights(shape, random).half() for key, shape in lm.shapes()}, lm.config()
        ),
        FILENAMES["compression"]: _export(
            OrderedDict((key, _weights(shape, random)) for key, shape in codec.shapes()),
            codec.config(),
        ),
    }
    for name, export in exports.items():
        torch.save(export, directory / name)
    return sum((directory / name).stat().st_size for name in exports)


def _export(best_state: dict[str, torch.Tensor], config: str) -> dict[str, object]:
    return {
        "best_state": best_state,
        "xp.cfg": config,
        "version": AUDIOCRAFT_VERSION,
        "exported": True,
    }


def _weights(shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=random) * 0.02


def _convolution(prefix: str, inputs: int, outputs: int, kernel: int) -> _Shapes:
    yield f"{prefix}.bias", (outputs,)
    yield f"{prefix}.weight_g", (outputs, 1, 1)
    yield f"{prefix}.weight_v", (outputs, inputs, kernel)


def _residual(prefix: str, width: int) -> _Shapes:
    yield from _convolution(f"{prefix}.block.1.conv.conv", width, width // 2, 3)
    yield from _convolution(f"{prefix}.block.3.conv.conv", width // 2, width, 1)


def _lstm(prefix: str, width: int) -> _Shapes:
    for layer in (0, 1):
        yield f"{prefix}.weight_ih_l{layer}", (4 * width, width)
        yield f"{prefix}.weight_hh_l{layer}", (4 * width, width)
        yield f"{prefix}.bias_ih_l{layer}", (4 * width,)
        yield f"{prefix}.bias_hh_l{layer}", (4 * width,)
