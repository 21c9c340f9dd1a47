"""What copy_into does to a module is what load_state_dict would have done to it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import BatchNorm1d, Linear, Module, Sequential

from craftcache.checkpoint.filling import copy_into
from tests.support.checkpoints import index_of, loaded, memory_file, saved

if TYPE_CHECKING:
    from collections.abc import Callable

told: list[str] = []
"""What the modules' own code was called for."""


class Buffered(Module):
    """Has buffers of both kinds, and none."""

    passing: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(3))
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("nothing", None)
        self.scale = torch.nn.Parameter(torch.zeros(()))


class Extra(Linear):
    """Has a state of its own."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor([1.0])

    def set_extra_state(self, state: torch.Tensor) -> None:
        told.append(f"extra {state.tolist()}")


class Doubling(Linear):
    """Loads its state itself."""

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        told.append(prefix)
        state[prefix + "weight"] = state[prefix + "weight"] * 2
        super()._load_from_state_dict(state, prefix, *rest)


def hooked() -> Module:
    """Its hook writes to what it is handed, as AudioCraft's attention does."""
    module = Linear(3, 2)

    def add_one(state: dict[str, Any], prefix: str, *_: Any) -> None:
        told.append(f"hook {prefix}")
        state[prefix + "weight"].add_(1)

    module._register_load_state_dict_pre_hook(add_one)  # type: ignore[no-untyped-call]
    return module


def hooked_afterwards() -> Module:
    module = Linear(3, 2)
    tell: Any = module.register_load_state_dict_post_hook
    tell(lambda *_: told.append("after"))
    return module


def tied() -> Module:
    """One module under two names, and one parameter in two modules."""
    one, two = Linear(3, 3), Linear(3, 3)
    two.weight = one.weight
    return Sequential(one, one, two)


def shadowed() -> Module:
    """Its method is replaced on the object, as AudioCraft's loaders' models have theirs."""
    module = Linear(3, 2)
    load = module.load_state_dict

    def tell_and_load(*args: Any, **kwargs: Any) -> Any:
        told.append("own")
        return load(*args, **kwargs)

    vars(module)["load_state_dict"] = tell_and_load
    return module


MODULES: dict[str, Callable[[], Module]] = {
    "plain": lambda: Sequential(Linear(3, 4), Sequential(Linear(4, 2, bias=False), Buffered())),
    "half": lambda: Sequential(Linear(3, 4), Linear(4, 2)).half(),
    "tied": tied,
    "no contiguous memory": lambda: transposed(Linear(3, 4)),
    "a norm with a version": lambda: Sequential(BatchNorm1d(4)),
    "extra state": lambda: Sequential(Extra(3, 2)),
    "its own code": lambda: Sequential(Doubling(3, 2)),
    "a hook": lambda: Sequential(hooked(), Linear(2, 2)),
    "a hook afterwards": lambda: Sequential(hooked_afterwards()),
    "its own method": shadowed,
}


def transposed(module: Linear) -> Module:
    module.weight.data = torch.ones(3, 4).t()
    return module


def values_of(module: Module) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in module.state_dict().items()
    }


def leave(state: dict[str, Any]) -> None:
    """Change nothing."""


def drop_one(state: dict[str, Any]) -> None:
    state.popitem()


def add_one(state: dict[str, Any]) -> None:
    state["more"] = torch.zeros(1)


def reshape_one(state: dict[str, Any]) -> None:
    state[next(iter(state))] = torch.zeros(9, 9)


def replace_one(state: dict[str, Any]) -> None:
    state[next(iter(state))] = "no tensor"


def flatten_scalar(state: dict[str, Any]) -> None:
    """torch takes one element for a scalar, as it was saved before 0.4."""
    for name, value in state.items():
        if not value.shape:
            state[name] = value.view(1)


CHANGES = (leave, drop_one, add_one, reshape_one, replace_one, flatten_scalar)


def outcome(do: Callable[[], object]) -> str | None:
    told.clear()
    try:
        do()
    except Exception as error:  # noqa: BLE001  # compared
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", MODULES)
def test_it_is_what_load_state_dict_does(
    kind: str, change: Callable[[dict[str, Any]], None]
) -> None:
    ours, theirs = MODULES[kind](), MODULES[kind]()
    with torch.no_grad():
        for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
            yours.copy_(mine)
    state = values_of(ours)
    change(state)
    content = saved(state)
    given: Any = loaded(content)
    expected = outcome(lambda: theirs.load_state_dict(given))
    expected_calls = list(told)
    with memory_file(content) as fd:
        versions = [parameter._version for parameter in ours.parameters()]
        assert outcome(lambda: copy_into(index_of(fd), fd, ours, key=None)) == expected
        assert os.pread(fd, len(content), 0) == content
    assert told == expected_calls
    if expected is None:
        assert all(p._version > v for p, v in zip(ours.parameters(), versions, strict=True))
    for (name, mine), yours in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert mine.dtype is yours.dtype
        assert torch.equal(mine, yours), name
