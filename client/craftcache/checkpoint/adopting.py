"""A state dict that a module takes over: without a copy, where that makes no difference.

AudioCraft copies every weight out of the checkpoint that it has just read, and drops the
checkpoint. Here a parameter or buffer takes the place in memory of the tensor that it would have
copied, where both have one dtype and device; a mapped file is then not read before a weight is
used. Where they differ the value is copied, and the pages of the file are given back at once. The
module's own load_state_dict does all the rest, so its hooks, its checks and its errors are torch's.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from .tensors import is_whole, release, storage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["adopt"]


def adopt(
    module: torch.nn.Module, state: Mapping[str, Any], *, strict: bool = True, assign: bool = False
) -> Any:  # noqa: ANN401  # torch's named tuple of missing and unexpected keys
    """``module.load_state_dict(state, strict, assign)``, which may keep tensors of ``state``.

    Parameters and buffers stay the objects that they are, so that what is tied stays tied. The
    tensors of ``state`` must not be used afterwards.

    Raises:
        RuntimeError: As load_state_dict does.
    """
    with _Adopting(module):
        return module.load_state_dict(state, strict=strict, assign=assign)


class _Adopting(TorchFunctionMode):
    """While it is entered, ``copy_`` into a tensor of the module takes the source over instead."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        tensors = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
        users = Counter(map(storage_of, tensors.values()))
        self._alone = {  # those that share memory with no other
            number for number, tensor in tensors.items() if users[storage_of(tensor)] == 1
        }
        self._adopted: set[StorageWeakRef] = set()

    def __torch_function__(
        self,
        func: Callable[..., object],
        _: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is not torch.Tensor.copy_ or len(args) != 2:
            return func(*args, **(kwargs or {}))
        target, source = args
        if self._can_adopt(target, source):
            self._adopted.add(storage_of(source))
            target.data = source.detach()
            return target
        func(target, source, **(kwargs or {}))
        if storage_of(source) not in self._adopted:
            release(source)
        return target

    def _can_adopt(self, target: torch.Tensor, source: torch.Tensor) -> bool:
        """Whether nothing but the place in memory tells ``source`` from a copy of it."""
        return (
            id(target) in self._alone
            and (target.dtype, target.device) == (source.dtype, source.device)
            and (target.shape, target.stride()) == (source.shape, source.stride())
            and is_whole(target)
            and is_whole(source)
            and storage_of(source) not in self._adopted
        )
