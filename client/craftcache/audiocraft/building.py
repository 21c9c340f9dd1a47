"""How AudioCraft's loaders build a model and fill it, without work that nobody sees.

A loader loads a checkpoint: on the CPU it computes in single precision, so a checkpoint in that is
asked for where the node has one. Then it calls a builder, and the model's load_state_dict.
``Builders`` is what the loaders see in place of the module ``audiocraft.models.builders``: within a
loader, the model that it returns has had its random initialisation put off, and its first
load_state_dict takes the checkpoint's tensors over and then initialises what is left.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from dataclasses import dataclass
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
    "load_language_model",
    "load_other_model",
    "make_deferrable",
]


@dataclass(frozen=True, slots=True)
class _Loading:
    """A loader that is running.

    Attributes:
        dtype: What its model will compute in, if that is another than its checkpoint's.
    """

    dtype: str | None


_loading: Final[ContextVar[_Loading | None]] = ContextVar("the loader running", default=None)


def load_language_model(load: Callable[..., Any]) -> Callable[..., Any]:
    """That loader, whose models are published in half precision and not computed in it on CPUs."""
    signature = inspect.signature(load)

    def loading(*args: Any, **kwargs: Any) -> _Loading:  # noqa: ANN401  # as the loader has it
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        return _Loading("float32" if str(call.arguments["device"]) == "cpu" else None)

    return _known(load, loading)


def load_other_model(load: Callable[..., Any]) -> Callable[..., Any]:
    """That loader, whose models compute in what they are published in."""
    return _known(load, lambda *_, **__: _Loading(None))


def _known(load: Callable[..., Any], loading: Callable[..., _Loading]) -> Callable[..., Any]:
    """A loader of which it is known that it runs, while it does."""

    @wraps(load)
    def load_known(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as the loader has it
        token = _loading.set(loading(*args, **kwargs))
        try:
            return load(*args, **kwargs)
        finally:
            _loading.reset(token)

    return load_known


def computed_dtype() -> str | None:
    """What the model that is being loaded computes in, if that is another than its checkpoint's."""
    loading = _loading.get()
    return None if loading is None else loading.dtype


class Builders:
    """The module of builders; what a loader builds by it is not initialised at once."""

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
    if _loading.get() is None:
        return build(cfg)
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
