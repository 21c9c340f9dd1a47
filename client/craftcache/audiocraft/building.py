"""How AudioCraft's loaders build and fill a model, without initialising what is then overwritten.

A loader loads a checkpoint, calls a builder, and then the model's load_state_dict.
``Builders`` takes the place of the module ``audiocraft.models.builders`` for the loaders: within a
loader, the model that it returns is built on its device, its random initialisation is deferred, and
its first load_state_dict takes the checkpoint's tensors over and then initialises the others.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final

import torch

from craftcache.checkpoint.adopting import adopt

from .deferring import Deferral, deferrable, suspended
from .placing import anywhere_else, placed_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

__all__ = [
    "Builders",
    "build_suspended",
    "loading",
    "make_deferrable",
]


_is_loading: Final[ContextVar[bool]] = ContextVar("whether a loader runs", default=False)


def loading(load: Callable[..., Any]) -> Callable[..., Any]:
    """``load`` wrapped so that builders know, while it runs, that a checkpoint follows."""

    @wraps(load)
    def load_known(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as the loader has it
        token = _is_loading.set(True)
        try:
            return load(*args, **kwargs)
        finally:
            _is_loading.reset(token)

    return load_known


class Builders:
    """The module of builders; the models that a loader builds with it are initialised later."""

    def __init__(self, builders: ModuleType) -> None:
        self._builders = builders

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the module has there
        return getattr(self._builders, name)

    def get_compression_model(self, cfg: Any) -> torch.nn.Module:  # noqa: ANN401  # OmegaConf's
        """A codec."""
        return _build(self._builders.get_compression_model, cfg, cfg.device)

    def get_lm_model(self, cfg: Any) -> torch.nn.Module:  # noqa: ANN401  # OmegaConf's
        """A language model."""
        return _build(self._builders.get_lm_model, cfg, cfg.device)

    def get_diffusion_model(self, cfg: object) -> torch.nn.Module:
        """One band of MultiBandDiffusion; the loader moves it when it is filled."""
        return _build(self._builders.get_diffusion_model, cfg, "cpu")


def build_suspended(get_conditioner_provider: Callable[..., Any]) -> Callable[..., Any]:
    """The builder wrapped to be as ever: T5, demucs and others load their own weights."""

    @wraps(get_conditioner_provider)
    def build(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # as the builder has it
        with suspended(), anywhere_else():
            return get_conditioner_provider(*args, **kwargs)

    return build


def make_deferrable(get_init_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The language model's choice of an initialiser, wrapped so that its fills can be deferred.

    It must be deferred as a whole: torch's truncated normal reads the values that it has drawn, to
    draw those outside the bounds again.
    """

    @wraps(get_init_fn)
    def get_deferrable(*args: Any, **kwargs: Any) -> Callable[[torch.Tensor], object]:  # noqa: ANN401
        return deferrable(get_init_fn(*args, **kwargs))

    return get_deferrable


def _build(build: Callable[[object], torch.nn.Module], cfg: object, device: str) -> torch.nn.Module:
    if not _is_loading.get():
        return build(cfg)
    deferral = Deferral()
    with deferral, placed_on(torch.device(device)):
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
    """The first load_state_dict of a model that a loader built: adopt tensors, draw the rest."""
    del vars(model)["load_state_dict"]
    with deferral:
        keys = adopt(model, state_dict, strict=strict, assign=assign, overwritten=deferral.forget)
    deferral.draw()
    return keys
