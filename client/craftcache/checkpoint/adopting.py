"""A state dict that a module takes over: without a copy, where that makes no difference.

AudioCraft copies every weight out of the checkpoint that it has just read, and drops the
checkpoint. Here a parameter or buffer takes the place in memory of the tensor that it would have
copied, where both have one dtype and device; a mapped file is then not read before a weight is
used. Where they differ the value is copied, and the pages of the file are given back at once; to
devices several are copied at once, straight from the file. The module's own load_state_dict does
all the rest, so its hooks, its checks and its errors are torch's.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from craftcache.device.link import find_link

from .device_copies import CopyingMode, DeviceCopies
from .mapped import release
from .storages import PLAIN_TENSORS, is_whole, storage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch.multiprocessing.reductions import StorageWeakRef

    from craftcache.device.link import DeviceLink

__all__ = ["adopt"]


def _ignore(_: torch.Tensor) -> None:
    """Nobody is told."""


def adopt(
    module: torch.nn.Module,
    state: Mapping[str, Any],
    *,
    strict: bool = True,
    assign: bool = False,
    overwritten: Callable[[torch.Tensor], object] = _ignore,
    link_to: Callable[[torch.device], DeviceLink | None] = find_link,
) -> Any:  # noqa: ANN401  # torch's named tuple of missing and unexpected keys
    """``module.load_state_dict(state, strict, assign)``, which may keep tensors of ``state``.

    Parameters and buffers stay the objects that they are, so that what is tied stays tied. The
    tensors of ``state`` must not be used afterwards.

    Args:
        module: Module that takes the values.
        state: Tensors by name.
        strict: As load_state_dict has it.
        assign: As load_state_dict has it.
        overwritten: Called with each tensor of the module that is overwritten, as a whole, by
            other means than torch's operators in this thread, before it is.
        link_to: Returns the way to a device; None where plain copies have to do.

    Raises:
        RuntimeError: As load_state_dict does.
        DeviceMemoryFull, DeviceLost: A copy to a device failed.
    """
    with DeviceCopies(link_to) as copies, _Adopting(module, state, copies, overwritten):
        return module.load_state_dict(state, strict=strict, assign=assign)


class _Adopting(CopyingMode):
    """While it is entered, ``copy_`` into a tensor of the module takes the source over instead."""

    def __init__(
        self,
        module: torch.nn.Module,
        state: Mapping[str, Any],
        copies: DeviceCopies,
        overwritten: Callable[[torch.Tensor], object],
    ) -> None:
        super().__init__(copies)
        self._overwritten = overwritten
        # What one entry of the state shares with another, a hook may yet convert in place for it.
        self._given = {
            storage for storage, users in _users(state.values()).items() if len(users) == 1
        }
        tensors = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
        self._alone = {  # those that share memory with no other
            id(users[0]) for users in _users(tensors.values()).values() if len(users) == 1
        }
        self._adopted: set[StorageWeakRef] = set()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> bool:
        """See CopyingMode.copy; takes ``source`` over where it can."""
        if self._can_adopt(target, source):
            self._adopted.add(storage_of(source))
            target.data = source.detach()
            return True
        if target.layout is not torch.strided or not is_whole(target):
            return False
        if not super().copy(target, source):
            return False
        self._overwritten(target)
        return True

    def copied(self, source: torch.Tensor) -> None:
        """See CopyingMode.copied."""
        if source.layout is torch.strided and storage_of(source) not in self._adopted:
            release(source)

    def _can_adopt(self, target: torch.Tensor, source: torch.Tensor) -> bool:
        """Whether nothing but the place in memory tells ``source`` from a copy of it."""
        return (
            id(target) in self._alone
            and (target.dtype, target.device) == (source.dtype, source.device)
            and target.layout is source.layout is torch.strided
            and (target.shape, target.stride()) == (source.shape, source.stride())
            and is_whole(target)
            and is_whole(source)
            and storage_of(source) in self._given
            and storage_of(source) not in self._adopted
        )


def _users(values: Iterable[object]) -> dict[StorageWeakRef, list[torch.Tensor]]:
    """The tensors among ``values`` by the memory that they have."""
    users: defaultdict[StorageWeakRef, list[torch.Tensor]] = defaultdict(list)
    for value in values:
        if not isinstance(value, torch.Tensor) or type(value) not in PLAIN_TENSORS:
            continue
        if value.layout is torch.strided:
            users[storage_of(value)].append(value)
    return users
