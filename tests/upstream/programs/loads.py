"""Loads checkpoints by craftcache in all the ways there are, and compares with torch.load.

Run as ``python loads.py DIRECTORY NAME`` by an interpreter that has AudioCraft and craftcache.
DIRECTORY holds what the node serves: the export NAME, and DIFFUSION. Prints as JSON, by the names
of the functions below, what they found.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pickle
import pkgutil
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from audiocraft.models import loaders
from omegaconf import DictConfig, ListConfig, OmegaConf

import craftcache
from craftcache import AsyncClient, Client, CraftcacheError

DIFFUSION = ("facebook/multiband-diffusion", "mbd_musicgen_32khz.th")
"""A checkpoint of OmegaConf's objects beside tensors."""

PARTS = {"lm": "state_dict.bin", "compression": "compression_state_dict.bin"}

Differences = list[str]
"""Where two checkpoints differ, by the path to it."""


def compare(ours: Any, theirs: Any, where: str = "") -> Differences:
    """Where two checkpoints differ in what a user can observe."""
    if type(ours) is not type(theirs):
        return [f"{where}: {type(ours)} for {type(theirs)}"]
    if isinstance(ours, torch.Tensor):
        return [where] if describe(ours) != describe(theirs) else []
    if isinstance(ours, (DictConfig, ListConfig)):
        views = [(OmegaConf.to_container(it), vars(it._metadata)) for it in (ours, theirs)]
        return [where] if views[0] != views[1] else []
    if isinstance(ours, Mapping):
        pairs = zip(ours.items(), theirs.items(), strict=False)
        found = [where] if list(ours) != list(theirs) else []
        return found + [d for (key, a), (_, b) in pairs for d in compare(a, b, f"{where}/{key}")]
    if isinstance(ours, (list, tuple)):
        pairs = enumerate(zip(ours, theirs, strict=False))
        found = [where] if len(ours) != len(theirs) else []
        return found + [d for key, (a, b) in pairs for d in compare(a, b, f"{where}/{key}")]
    return [where] if ours != theirs else []


def describe(tensor: torch.Tensor) -> tuple[object, ...]:
    """All that is to be seen of a tensor; its values by their bytes."""
    layout = (tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.storage_offset())
    storage = tensor.untyped_storage()
    return (*layout, type(tensor), tensor.requires_grad, storage.nbytes(), bytes(storage))


def expected(file: Path) -> Any:
    """What torch makes of a file that is trusted."""
    return torch.load(file, map_location="cpu", weights_only=False)


def same_export(export: craftcache.Export, directory: Path) -> Differences:
    """Where both parts differ from their files."""
    return [
        difference
        for part, name in PARTS.items()
        for difference in compare(getattr(export, part), expected(directory / name), part)
    ]


def modules() -> list[str]:
    """All modules of craftcache; each can be imported."""
    walked = pkgutil.walk_packages(craftcache.__path__, "craftcache.")
    names = [found.name for found in walked if not found.name.endswith((".__main__", "customize"))]
    return [importlib.import_module(name).__name__ for name in names]


def load(directory: Path, name: str) -> dict[str, Any]:
    """By the node, by a client of each kind."""

    async def load_async() -> craftcache.Export:
        async with AsyncClient() as client:
            return await client.load(name)

    exports = {
        "default client": craftcache.load(name),
        "Client": Client().load(name),
        "AsyncClient": asyncio.run(load_async()),
    }
    return {
        kind: [export.served_by, same_export(export, directory / name)]
        for kind, export in exports.items()
    }


def load_state_dict(directory: Path, name: str) -> Differences:
    """Each file alone, the one of OmegaConf's objects as well."""
    files = [*((name, file) for file in PARTS.values()), DIFFUSION]
    return [
        difference
        for source, file in files
        for difference in compare(
            craftcache.load_state_dict(source, file), expected(directory / source / file), file
        )
    ]


def load_into(directory: Path, name: str) -> dict[str, Any]:
    """A module of AudioCraft's, whose weights were other ones before."""
    module = loaders.load_lm_model(str(directory / name), device="cpu")
    state = expected(directory / name / PARTS["lm"])["best_state"]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    craftcache.load_into(module, name, part="lm")
    wrong = [
        key
        for key, value in module.state_dict().items()
        if not torch.equal(value, state[key].float())
    ]
    return {"tensors": len(state), "wrong": wrong}


def without_daemon(directory: Path, name: str) -> list[Any]:
    """From the node's cache, and why."""
    with tempfile.TemporaryDirectory() as nothing:
        export = Client(socket_dir=nothing).load(name)
    return [export.served_by, bool(export.fallback_reason), same_export(export, directory / name)]


def local_files(directory: Path, name: str) -> dict[str, Any]:
    """What no daemon has looked at, in each container and with what an index cannot say."""
    tied = torch.arange(6.0)
    values = {
        "tied": [tied[2:], tied.view(2, 3).t(), tied[:0]],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "ordered": OrderedDict(a=torch.zeros(3, dtype=torch.bfloat16), b=[1, 2.5, "c", None]),
        "nested": {"tuple": (1, (torch.ones(1),)), 3: True},
    }
    found = {"export": same_export(craftcache.load(directory / name), directory / name)}
    with tempfile.TemporaryDirectory() as base:
        for kind, options in {
            "zip": {},
            "legacy": {"_use_new_zipfile_serialization": False},
        }.items():
            file = Path(base, f"{kind}.th")
            torch.save(values, file, **options)
            found[kind] = compare(craftcache.load_state_dict(file), expected(file))
    file = directory.joinpath(*DIFFUSION)
    found["omegaconf"] = compare(craftcache.load_state_dict(file), expected(file))
    return found


class Hostile:
    """What runs a command when it is unpickled as ever."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.canary),))


def refusals(_directory: Path, _name: str) -> dict[str, Any]:
    """What is refused, and in which words; an empty text is for what is not."""
    found = {}
    with tempfile.TemporaryDirectory() as base:
        canary = Path(base, "canary")
        files = {
            "hostile": {"best_state": Hostile(canary)},
            "sparse": {"best_state": torch.eye(2).to_sparse()},
        }
        for kind, checkpoint in files.items():
            file = Path(base, f"{kind}.th")
            torch.save(checkpoint, file)
            try:
                craftcache.load_state_dict(file)
            except CraftcacheError as error:
                found[kind] = f"{error.code}: {error}"
            else:
                found[kind] = ""
        return {**found, "executed": canary.exists()}


def errors_survive(_directory: Path, _name: str) -> str:
    """An error and its notes, which Python 3.10 knows nothing of."""
    error = craftcache.NotFound("no such thing", source="x/y")
    error.add_note("and another")
    return str(pickle.loads(pickle.dumps(error)).__notes__)  # our own


def main(directory: Path, name: str) -> None:
    """All of it, one after the other in one process."""
    steps = (
        load,
        load_state_dict,
        load_into,
        without_daemon,
        local_files,
        refusals,
        errors_survive,
    )
    found = {step.__name__: step(directory, name) for step in steps}
    print(json.dumps({"modules": modules(), "torch": torch.__version__, **found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
