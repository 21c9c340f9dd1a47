"""The shapes of AudioCraft's language models, and what the benchmarks of loading share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

KEY = "best_state"
"""Key of a checkpoint below which its tensors are."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A language model's size: its layers and their width."""

    name: str
    layers: int
    width: int

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Each parameter's name and shape, as AudioCraft's LMModel has them."""
        width, card, books = self.width, min(2048, 2 * self.width), 4
        for book in range(books):
            yield f"emb.{book}.weight", (card + 1, width)
        yield "condition_provider.conditioners.description.output_proj.weight", (width, 768)
        yield "condition_provider.conditioners.description.output_proj.bias", (width,)
        for layer in range(self.layers):
            prefix = f"transformer.layers.{layer}"
            for attention in ("self_attn", "cross_attention"):
                yield f"{prefix}.{attention}.in_proj_weight", (3 * width, width)
                yield f"{prefix}.{attention}.out_proj.weight", (width, width)
            yield f"{prefix}.linear1.weight", (4 * width, width)
            yield f"{prefix}.linear2.weight", (width, 4 * width)
            for norm in ("norm1", "norm2", "norm_cross"):
                yield f"{prefix}.{norm}.weight", (width,)
                yield f"{prefix}.{norm}.bias", (width,)
        yield "out_norm.weight", (width,)
        yield "out_norm.bias", (width,)
        for book in range(books):
            yield f"linears.{book}.weight", (card, width)


def build_module(parameters: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """A module with these parameters, each at the place that its name says."""
    root = torch.nn.Module()
    for name, tensor in parameters.items():
        *path, last = name.split(".")
        module = root
        for step in path:
            if step not in dict(module.named_children()):
                module.add_module(step, torch.nn.Module())
            module = module.get_submodule(step)
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    return root


def heat(paths: Iterable[Path]) -> None:
    """Bring files into the page cache."""
    buffer = bytearray(1 << 24)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
