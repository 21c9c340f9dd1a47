"""Loads models by AudioCraft's own calls, as it is and with the patch, and compares the two.

Run as ``python compare.py CLASS:NAME...`` by an interpreter that has AudioCraft. Prints as JSON by
name what differs: the names of tensors that are not the same in all that a user can observe, and
whether the two generate different samples.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import audiocraft.models
from generate import generate  # type: ignore[import-not-found]  # which is beside this file

import craftcache.audiocraft

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def main(models: list[str]) -> None:
    """Load everything twice."""
    names = [model.split(":") for model in models]
    theirs = {name: observe(kind, name) for kind, name in names}
    craftcache.audiocraft.install()
    ours = {name: observe(kind, name) for kind, name in names}
    differences = {name: list(compare(ours[name], theirs[name])) for _, name in names}
    print(json.dumps(differences))


def observe(kind: str, name: str) -> dict[str, Any]:
    """All that is to be seen of a model."""
    model = getattr(audiocraft.models, kind).get_pretrained(name, device="cpu")
    observed: dict[str, Any] = {}
    for part, module in (("lm", model.lm), ("compression", model.compression_model)):
        observed[f"{part} modules"] = [
            (path, type(child).__qualname__, child.training)
            for path, child in module.named_modules()
        ]
        for tensors in (module.named_parameters, module.named_buffers):
            for path, tensor in tensors(remove_duplicate=False):
                observed[f"{part}.{path}"] = describe(tensor)
        observed[f"{part} state dict"] = list(module.state_dict())
        observed[f"{part} attributes"] = sorted(vars(module))
    observed["samples"] = describe(generate(model))
    return observed


def describe(tensor: torch.Tensor) -> tuple[object, ...]:
    """All that is to be seen of a tensor; its values by their bytes."""
    layout = (tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.storage_offset())
    storage = tensor.untyped_storage()
    autograd = (type(tensor), tensor.requires_grad, tensor.is_leaf, tensor.grad_fn)
    return (*layout, storage.nbytes(), *autograd, bytes(storage))


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """The names under which the two are not equal, or one has nothing."""
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs or ours[name] != theirs[name]:
            yield name


if __name__ == "__main__":
    main(sys.argv[1:])
