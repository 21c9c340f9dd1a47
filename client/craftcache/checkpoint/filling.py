"""A module that takes a checkpoint's values, straight out of the file.

What torch's load_state_dict would do is done by it where the module has code of its own in the way:
hooks, or a class that loads its state itself. Such code may write to what it is handed, and sees
all that it would see otherwise. Where there is none, the copies that load_state_dict would make are
known beforehand and made at once, since nobody can tell the difference.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import Module

from craftcache.device.file_reader import FileReader
from craftcache.device.link import find_link
from craftcache.errors import InvalidSource, UnknownDevice

from .copies_to_device import MappedFile
from .device_copies import CopyingMode, DeviceCopies
from .mapped import Releases, address_of
from .storages import PLAIN_TENSORS
from .tensors import build, build_mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from craftcache.device.link import DeviceLink

    from .index import Index

__all__ = ["copy_into", "load_state_dict"]

_OWN_CODE: Final = (
    "_load_from_state_dict",
    "load_state_dict",
    "get_extra_state",
    "set_extra_state",
)
"""Methods by which a class of modules has a say in how its state is loaded."""


def copy_into(
    index: Index,
    fd: int,
    module: Module,
    *,
    key: str | None,
    mapped: bool = True,
    source: str | None = None,
    link_to: Callable[[torch.device], DeviceLink | None] = find_link,
) -> None:
    """Copy a state dict straight into ``module``, cast to its parameters' dtypes and devices.

    It is done as the module's own load_state_dict does it, strictly, from tensors that are still in
    the file: its hooks see the keys that they expect, and little of the file is in memory beside
    the module. Copies to devices are made several at once, and are cast there.

    Args:
        index: Index of the file.
        fd: The file, open for reading; it may be closed afterwards.
        module: Module that takes the values; its parameters keep dtype and device.
        key: Key of the state dict in the checkpoint's top-level dict; None if that is one itself.
        mapped: As in ``build``; unmapped, the file's tensors are in memory while this runs.
        source: Named in errors.
        link_to: Returns the way to a device; None where plain copies have to do.

    Raises:
        InvalidSource: There is no state dict under ``key``.
        UnknownDevice: A parameter or buffer is on the meta device.
        RuntimeError: As load_state_dict does, listing missing and unexpected keys and the sizes
            that differ.
        DeviceMemoryFull, DeviceLost: See build.
    """
    if index.reason is not None:
        checkpoint = build(index, fd, device=torch.device("cpu"), source=source)
        load_state_dict(checkpoint, module, key=key, source=source)
        return
    checkpoint, map_of_file = build_mapped(index, fd, mapped=mapped)
    state = _state_of(checkpoint, key, source)
    _check_places(module, source)
    pairs = _plain_copies(module, state)
    releases = Releases(are_unwritten=pairs is not None)
    with ExitStack() as stack:
        file = None
        if map_of_file is not None:
            reader = stack.enter_context(FileReader(fd, index.file_size, direct=False))
            address, size = address_of(map_of_file), len(map_of_file)
            file = MappedFile(address, size, reader, is_unwritten=pairs is not None)
        copies = stack.enter_context(DeviceCopies(link_to, file=file, source=source))
        if pairs is None:
            stack.enter_context(_Releasing(copies, releases))
            module.load_state_dict(state, strict=True)
        else:
            _copy_all(pairs, copies, releases)


def load_state_dict(
    checkpoint: object, module: Module, *, key: str | None, source: str | None = None
) -> None:
    """Copy the state dict under ``key`` of a loaded checkpoint into ``module``; see copy_into."""
    state = _state_of(checkpoint, key, source)
    _check_places(module, source)
    module.load_state_dict(state, strict=True)


def _state_of(checkpoint: object, key: str | None, source: str | None) -> dict[str, Any]:
    state: Any = checkpoint
    if key is not None:
        state = checkpoint.get(key) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        found = ", ".join(map(repr, checkpoint)) if isinstance(checkpoint, dict) else "no dict"
        raise InvalidSource(f"it has no state dict under {key!r}: it holds {found}", source=source)
    return state


def _check_places(module: Module, source: str | None) -> None:
    """Raise where torch would copy into the meta device, which takes no time and keeps nothing."""
    names = [
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        for name, tensor in chain(part.named_parameters(recurse=False), _kept_buffers(part))
        if tensor.is_meta
    ]
    if names:
        more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
        raise UnknownDevice(
            f"{names[0]}{more} on the meta device, which holds no values to copy into",
            source=source,
            hint="Call module.to_empty(device=...) first, or give what load returns to "
            "module.load_state_dict(..., assign=True)",
        )


def _kept_buffers(part: Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers of a module's own that a state dict has."""
    passing: set[str] = part._non_persistent_buffers_set  # noqa: SLF001  torch has no public name
    return (
        (name, tensor) for name, tensor in part.named_buffers(recurse=False) if name not in passing
    )


def _plain_copies(
    module: Module, state: Mapping[str, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """The copies that load_state_dict makes, in its order: target and source.

    None where anything but torch's own code has a say, or load_state_dict has anything to tell.
    """
    future: Any = getattr(torch, "__future__", None)
    swaps = getattr(future, "get_swap_module_params_on_conversion", None)  # torch 2.3 and newer
    if swaps is not None and swaps():
        return None
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        if _has_own_code(part):
            return None
        parameters = ((n, each) for n, each in part._parameters.items() if each is not None)  # noqa: SLF001  # as torch itself: named_parameters drops tied ones
        for name, target in chain(parameters, _kept_buffers(part)):
            source: Any = state.get(f"{prefix}.{name}" if prefix else name)
            if not _is_plain_copy(target, source):
                return None
            pairs.append((target, source))
    return pairs if len(pairs) == len(state) else None


def _has_own_code(part: Module) -> bool:
    kind = type(part)
    return (
        any(getattr(kind, name) is not getattr(Module, name) for name in _OWN_CODE)
        or not vars(part).keys().isdisjoint(_OWN_CODE)
        or bool(part._load_state_dict_pre_hooks)  # noqa: SLF001  # torch has no public name
        or bool(part._load_state_dict_post_hooks)  # noqa: SLF001
    )


def _is_plain_copy(target: object, source: object) -> bool:
    """Whether load_state_dict makes nothing but a copy of it, without a word."""
    return (
        isinstance(target, torch.Tensor)
        and isinstance(source, torch.Tensor)
        and type(target) in PLAIN_TENSORS
        and type(source) in PLAIN_TENSORS
        and target.shape == source.shape
        and target.layout is source.layout is torch.strided
        and not (target.is_quantized or source.is_quantized)
        and source.dtype.is_complex <= target.dtype.is_complex  # torch warns of what is lost
    )


def _copy_all(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], copies: DeviceCopies, releases: Releases
) -> None:
    with torch.no_grad():
        for target, source in pairs:
            if not copies.take(target, source):
                copies.flush()  # what is under way may go to the same memory
                target.copy_(source)
                releases.add(source)


class _Releasing(CopyingMode):
    """While it is entered, the source of each ``copy_`` in this thread is released afterwards."""

    def __init__(self, copies: DeviceCopies, releases: Releases) -> None:
        super().__init__(copies)
        self._releases = releases

    def copied(self, source: torch.Tensor) -> None:
        """See CopyingMode.copied."""
        self._releases.add(source)
