"""How AudioCraft's loaders build a model and fill it, without work that nobody sees.

A loader loads a checkpoint: on the CPU it computes in single precision, so a checkpoint in that is
asked for where the node has one. Then it calls a builder, and the model's load_state_dict.
``Builders`` is what the loaders see in place of the module ``audiocraft.models.builders``: the
model that it returns has had its random initialisation put off, and its first load_state_dict
takes the checkpoint's tensors over and then initialises what is left.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final

from craftcache.checkpoint.adopting import adopt

from .deferring import Deferral, deferrable, suspended

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    import torch

__all__ = [
    "Builders",
    "build_suspended",
    "computed_dtype",
    "load_as_computed",
    "make_deferrable",
]

_computed: Final[ContextVar[str | None]] = ContextVar("dtype that is computed in", default=None)


def load_as_computed(load_model: Callable[..., Any]) -> Callable[..., Any]:
    """That loader of language models; while it runs, computed_dtype says what it computes in."""
    signature = inspect.signature(load_model)

    @wraps(load_model)
    def load(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as the loader has it
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        token = _computed.set("float32" if str(call.arguments["device"]) == "cpu" else None)
        try:
            return load_model(*args, **kwargs)
        finally:
            _computed.reset(token)

    return load


def computed_dtype() -> str | None:
    """The dtype that the model which is being loaded computes in, where that is no half precision.

    None as well outside of any loader of language models.
    """
    return _computed.get()


class Builders:
    """The module of builders; those that the loaders call defer the initialisation."""

    def __init__(self, builders: ModuleType) -> None:
        self._builders = builders

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the module has there
        return getattr(self._builders, name)

    def get_compression_model(self, cfg: object) -> torch.nn.Module:
        """A codec."""
        return _build(self._builders.get_compression_model, cfg)

    def get_lm_model(self, cfg: object) -> torch.nn.Module:
        """A language model."""
        return _build(self._builders.get_lm_model, cfg)

    def get_diffusion_model(self, cfg: object) -> torch.nn.Module:
        """One band of MultiBandDiffusion."""
        return _build(self._builders.get_diffusion_model, cfg)


def build_suspended(get_conditioner_provider: Callable[..., Any]) -> Callable[..., Any]:
    """That builder, outside of any deferral: T5, demucs and others load weights of their own."""

    @wraps(get_conditioner_provider)
    def build(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as the builder has it
        with suspended():
            return get_conditioner_provider(*args, **kwargs)

    return build


def make_deferrable(get_init_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The language model's choice of a random fill, one that can be put off.

    torch's truncated normal draws again what fell outside, so it reads what it has drawn.
    """

    @wraps(get_init_fn)
    def get_deferrable(*args: Any, **kwargs: Any) -> Callable[[torch.Tensor], object]:  # noqa: ANN401
        return deferrable(get_init_fn(*args, **kwargs))

    return get_deferrable


def _build(build: Callable[[object], torch.nn.Module], cfg: object) -> torch.nn.Module:
    deferral = Deferral()
    with deferral:
        model = build(cfg)
    vars(model)["load_state_dict"] = partial(_load_first, model, deferral)  # before the method
    return model


def _load_first(
    model: torch.nn.Module,
    deferral: Deferral,
    state_dict: Mapping[str, Any],
    strict: bool = True,  # the method's own signature
    assign: bool = False,
) -> Any:  # noqa: ANN401  # torch's named tuple of missing and unexpected keys
    """The first load_state_dict of a model that the loaders built."""
    del vars(model)["load_state_dict"]
    with deferral:
        keys = adopt(model, state_dict, strict=strict, assign=assign)
    deferral.draw()
    return keys
