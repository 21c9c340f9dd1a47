"""What the patch does to AudioCraft's modules, and what it leaves alone.

Run as ``python patch.py NAME`` by an interpreter that has AudioCraft; NAME is an export with a lut
conditioner. Prints as JSON what it found, by the names of the functions below.
"""

from __future__ import annotations

import json
import sys
import threading
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import audiocraft
import torch
from audiocraft.models import MusicGen, builders, lm, loaders
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import craftcache
from craftcache.audiocraft import install, is_installed, uninstall
from craftcache.audiocraft.building import loading

if TYPE_CHECKING:
    from collections.abc import Callable


def attributes() -> dict[str, Any]:
    """Every name in every module of AudioCraft, and what it stands for."""
    return {
        f"{module_name}.{name}": value
        for module_name, module in sys.modules.items()
        if module_name.split(".")[0] == "audiocraft"
        for name, value in vars(module).items()
    }


def changed_from(before: dict[str, Any]) -> list[str]:
    """The names that stand for another object than before."""
    now = attributes()
    return sorted(name for name in {**before, **now} if before.get(name) is not now.get(name))


def refusal(_source: str) -> dict[str, Any]:
    """Of a version that nobody has looked at."""
    before, version = attributes(), audiocraft.__version__
    audiocraft.__version__ = "9.9"
    try:
        install()
    except craftcache.UnknownAudioCraft as error:
        refused = str(error)
    finally:
        audiocraft.__version__ = version
    return {"error": refused, "changed": changed_from(before), "installed": is_installed()}


def restoring(_source: str) -> dict[str, Any]:
    """Twice installed, once uninstalled."""
    before = attributes()
    install()
    once = attributes()
    install(craftcache.Client())
    again = changed_from(once)
    changed = changed_from(before)
    installed = is_installed()
    uninstall()
    uninstall()
    return {
        "installed": installed,
        "changed": changed,
        "changed again": again,
        "left": changed_from(before),
        "uninstalled": not is_installed(),
    }


def other_builds(source: str) -> dict[str, Any]:
    """What a training run builds while the patch is installed, here and beside a load."""
    config = configuration(source)

    def build(module: Any = builders) -> list[torch.Tensor]:
        torch.manual_seed(3)
        return list(module.get_lm_model(deepcopy(config)).parameters())

    before = build()
    install()
    here = build()
    as_loaders = build(loaders.builders)
    apart: list[list[torch.Tensor]] = []
    original = builders.get_condition_fuser

    def in_the_midst(cfg: Any) -> Any:
        """The loaders' builder calls this; another thread builds meanwhile."""
        if not apart:
            apart.append([])
            in_thread(lambda: apart.append(build()))
        return original(cfg)

    builders.get_condition_fuser = in_the_midst
    loaders.load_lm_model(source)
    builders.get_condition_fuser = original
    uninstall()
    return {
        "here": all(map(torch.equal, before, here)),
        "as the loaders, but not by one": all(map(torch.equal, before, as_loaders)),
        "in another thread": all(map(torch.equal, before, apart[-1])),
        "tensors": len(apart[-1]),
    }


def not_overwritten(source: str) -> dict[str, Any]:
    """What is not taken from a checkpoint, against what AudioCraft initialises it with."""
    theirs = dict(builders.get_lm_model(configuration(source)).named_parameters())
    name = "emb.0.weight"

    def take_one(model: lm.LMModel, state: dict[str, torch.Tensor], **_: object) -> object:
        """A load_state_dict."""
        return torch.nn.Module.load_state_dict(model, {name: state[name]}, strict=False)

    install()
    lm.LMModel.load_state_dict = take_one
    ours = dict(loaders.load_lm_model(source).named_parameters())
    del lm.LMModel.load_state_dict
    theirs[name] = loaders.load_lm_model_ckpt(source)["best_state"][name].float()
    uninstall()
    return {
        "overwritten": torch.equal(ours.pop(name), theirs.pop(name)),
        "deviations": {
            path: (
                ours[path].std().item(),
                their.std().item(),
                ours[path].mean().item(),
                their.numel(),
            )
            for path, their in theirs.items()
        },
        "drawn alike": [path for path in theirs if torch.equal(ours[path], theirs[path])],
        "constant": [path for path, their in theirs.items() if not their.std()],
    }


def where_weights_lie(source: str) -> dict[str, list[str]]:
    """In which files, of the language model and of the codec; anonymous memory has no name."""
    install()
    model = MusicGen.get_pretrained(source, device="cpu")
    uninstall()
    lines = Path("/proc/self/maps").read_text().splitlines()

    def file_at(address: int) -> str:
        """By lines of ``start-end permissions offset device inode path``."""
        for fields in (line.split(maxsplit=5) for line in lines):
            start, end = (int(bound, 16) for bound in fields[0].split("-"))
            if start <= address < end:
                return "".join(fields[5:])
        return ""

    def files(module: torch.nn.Module) -> list[str]:
        return [file_at(weight.data_ptr()) for weight in module.parameters()]

    return {"lm": files(model.lm), "compression": files(model.compression_model)}


class MadeOnCpu(TorchDispatchMode):
    """While it is entered, counts the bytes of all tensors that operators return on the CPU.

    A deferral that is entered meanwhile is told of them first, and calls the operators.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, _: object, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.nbytes += sum(
            leaf.nbytes
            for leaf in tree_flatten(made)[0]
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu"
        )
        return made


def built_on_cpu(source: str) -> dict[str, list[int]]:
    """Bytes of tensors that are made on the CPU for a model elsewhere, as it is and patched.

    A conditioner, which is built as ever, is part of the language model's.
    """

    def count(build: Callable[[Any], object], config: Any) -> int:
        with MadeOnCpu() as made:
            build(config)
        return int(made.nbytes)

    lm_config = configuration(source)
    codec_config = OmegaConf.create(loaders.load_compression_model_ckpt(source)["xp.cfg"])
    codec_config.seanet.norm = "none"  # torch 2.1 norms no weights on the device that is used here
    found = {}
    for name, config in (("get_lm_model", lm_config), ("get_compression_model", codec_config)):
        config.device = "meta"
        theirs = count(getattr(builders, name), deepcopy(config))
        install()
        ours = count(loading(getattr(loaders.builders, name)), config)
        uninstall()
        found[name] = [theirs, ours]
    conditioner = count(lambda config: builders.get_conditioner_provider(16, config), lm_config)
    return {**found, "get_conditioner_provider": [conditioner, conditioner]}


def configuration(source: str) -> Any:
    """Of an export's language model."""
    config = OmegaConf.create(loaders.load_lm_model_ckpt(source)["xp.cfg"])
    config.device, config.dtype = "cpu", "float32"
    return config


def in_thread(call: Callable[[], object]) -> None:
    """Call it in another thread, and wait for it."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def main(source: str) -> None:
    """All of it, one after the other in one process."""
    steps = (refusal, restoring, other_builds, not_overwritten, where_weights_lie, built_on_cpu)
    print(json.dumps({step.__name__: step(source) for step in steps}))


if __name__ == "__main__":
    main(sys.argv[1])
