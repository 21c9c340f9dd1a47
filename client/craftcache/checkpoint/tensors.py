"""Tensors from an index and the file it describes: what torch.load would have returned.

On the CPU the file is mapped, privately: nothing is read before it is used, what a worker writes
only it can see, and all workers share the pages that none has written to. A storage keeps the
map alive; with the last one it goes. Other devices get a copy, by craftcache.device where they have
streams, and hold nothing of the file afterwards.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from craftcache.checkpoint import weights_only
from craftcache.device.file_reader import FileReader
from craftcache.device.link import find_link
from craftcache.errors import InvalidSource, NotACheckpoint, UnknownDevice

from .descriptor import read_into
from .device_copies import CopyingMode, DeviceCopies, MappedFile
from .index import ITEM_BYTES, assemble
from .mapped import address_of, map_privately, release
from .onto_device import bring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from craftcache.device.link import DeviceLink

    from .index import Index, Storage

__all__ = ["build", "build_all", "copy_into", "load_state_dict", "release"]


def build(
    index: Index,
    fd: int,
    *,
    device: torch.device,
    mapped: bool = True,
    source: str | None = None,
    link: DeviceLink | None = None,
    direct: bool = False,
) -> object:
    """What ``torch.load(file, map_location=device)`` would have returned.

    Args:
        index: Index of the file.
        fd: The file, open for reading; it may be closed afterwards.
        device: Device of all tensors.
        mapped: Whether the file may be mapped; False on a network file system, where a map may
            die or hang: then it is read.
        source: Named in errors.
        link: The way to the device; None finds one, unless it is the CPU.
        direct: Whether what goes to a device is read past the page cache, where it is not in it:
            nobody else will want the file.

    Raises:
        UnsafeCheckpoint, NotACheckpoint: Of a file that only torch can load.
        DeviceMemoryFull: There is too little memory on the device.
        DeviceLost: The device failed.
        OSError: The file could not be mapped or read.
    """
    if index.reason is not None:
        return weights_only.load(fd, map_location=device, source=source)
    if link is None and device.type != "cpu":
        link = find_link(device)
    if link is not None:
        make = partial(build_all, index, device)
        return bring(index, fd, link, make, direct=direct, source=source)
    spans = _Spans(index, fd, mapped=mapped)
    take = spans.take if device.type == "cpu" else _PlainTransfer(spans, device).take
    return build_all(index, device, take)


def build_all(
    index: Index, device: torch.device, take: Callable[[Storage, torch.dtype], torch.Tensor]
) -> object:
    """The objects of an index, their tensors on ``device`` in the storages that ``take`` returns.

    Args:
        index: Index of a file that has no reason to be loaded by torch.
        device: Device of all tensors.
        take: Returns all of a storage as elements of a dtype, in a storage of exactly its size.
    """
    return assemble(index.tree, _build_tensors(index, take, device))


def copy_into(
    index: Index,
    fd: int,
    module: torch.nn.Module,
    *,
    key: str | None,
    mapped: bool = True,
    source: str | None = None,
    link_to: Callable[[torch.device], DeviceLink | None] = find_link,
) -> None:
    """Copy a state dict straight into ``module``, cast to its parameters' dtypes and devices.

    The module's own load_state_dict does it, strictly, from tensors that are still in the file:
    its hooks see the keys that they expect, and nothing but the storage under way is in memory
    beside the module. Copies to devices are made several at once, and are cast there.

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
    cpu = torch.device("cpu")
    if index.reason is not None:
        checkpoint = build(index, fd, device=cpu, source=source)
        load_state_dict(checkpoint, module, key=key, source=source)
        return
    spans = _Spans(index, fd, mapped=mapped)
    checkpoint = assemble(index.tree, _build_tensors(index, spans.take, cpu))
    with ExitStack() as stack:
        file = spans.file(stack.enter_context(FileReader(fd, index.file_size, direct=False)))
        copies = stack.enter_context(DeviceCopies(link_to, file=file, source=source))
        stack.enter_context(_Releasing(copies))
        load_state_dict(checkpoint, module, key=key, source=source)


def load_state_dict(
    checkpoint: object, module: torch.nn.Module, *, key: str | None, source: str | None = None
) -> None:
    """Copy the state dict under ``key`` of a loaded checkpoint into ``module``; see copy_into."""
    state: Any = checkpoint
    if key is not None:
        state = checkpoint.get(key) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        found = ", ".join(map(repr, checkpoint)) if isinstance(checkpoint, dict) else "no dict"
        raise InvalidSource(f"it has no state dict under {key!r}: it holds {found}", source=source)
    _check_places(module, source)
    module.load_state_dict(state, strict=True)


def _check_places(module: torch.nn.Module, source: str | None) -> None:
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


def _kept_buffers(part: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers of a module's own that a state dict has."""
    passing: set[str] = part._non_persistent_buffers_set  # noqa: SLF001  torch has no public name
    return (
        (name, tensor) for name, tensor in part.named_buffers(recurse=False) if name not in passing
    )


class _Spans:
    """The storages of a file as flat tensors, mapped or read."""

    def __init__(self, index: Index, fd: int, *, mapped: bool) -> None:
        self._fd = fd
        self._unaligned = _unaligned(index)
        self._map = map_privately(fd, index.file_size) if mapped and index.storages else None

    def file(self, reader: FileReader) -> MappedFile | None:
        """The map and a reader of the same file; None if it is not mapped."""
        if self._map is None:
            return None
        return MappedFile(address_of(self._map), len(self._map), reader)

    def take(self, storage: Storage, dtype: torch.dtype) -> torch.Tensor:
        """All of a storage as elements of ``dtype``; its own storage, of exactly that size."""
        count = storage.nbytes // dtype.itemsize
        if not count:
            return torch.empty(0, dtype=dtype, device="cpu")
        if self._map is not None and storage not in self._unaligned:
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=storage.offset)
        read = bytearray(storage.nbytes)
        read_into(self._fd, read, storage.offset)
        return torch.frombuffer(read, dtype=dtype)


def _unaligned(index: Index) -> frozenset[Storage]:
    """The storages in which a tensor's elements lie where no processor expects them.

    The zip container aligns its storages, and an index of one says nothing else.
    """
    if index.format != "legacy":
        return frozenset()
    return frozenset(
        storage
        for tensor in index.tensors
        if (storage := index.storages[tensor.storage]).offset % ITEM_BYTES[tensor.dtype]
    )


class _Releasing(CopyingMode):
    """While it is entered, the source of each ``copy_`` in this thread is released afterwards."""

    def copied(self, source: torch.Tensor) -> None:
        """See CopyingMode.copied."""
        release(source)


class _PlainTransfer:
    """The storages of a file as flat tensors on another device, one copy for each."""

    def __init__(self, spans: _Spans, device: torch.device) -> None:
        self._spans = spans
        self._device = device

    def take(self, storage: Storage, dtype: torch.dtype) -> torch.Tensor:
        """All of a storage as elements of ``dtype``; its own storage, of exactly that size."""
        moved = self._spans.take(storage, torch.uint8).to(self._device)
        return torch.empty(0, dtype=dtype, device=self._device).set_(moved.untyped_storage())


def _build_tensors(
    index: Index, take: Callable[[Storage, torch.dtype], torch.Tensor], device: torch.device
) -> list[torch.Tensor]:
    """The tensors of an index; those of one storage share it.

    No tensor is a view in autograd's sense: each is made upon its storage, as torch.load makes it.
    """
    dtypes = _dtypes(index)
    storages = index.storages
    owners: dict[int, torch.Tensor] = {}
    tensors = []
    for name, number, shape, stride, offset, requires_grad, is_parameter in index.tensors:
        dtype = dtypes[name]
        owner = owners.get(number)
        is_plain = stride is None and not is_parameter and not requires_grad
        if is_plain and owner is None:  # nearly all are; one call each, or two
            tensor = take(storages[number], dtype)
            if len(shape) != 1:
                tensor.resize_(shape)
            owners[number] = tensor
            tensors.append(tensor)
            continue
        if owner is None:
            owner = owners[number] = take(storages[number], torch.uint8)
        tensor = torch.empty(0, dtype=dtype, device=device)
        if stride is None:
            tensor.set_(owner.untyped_storage()).resize_(shape)
        else:
            tensor.set_(owner.untyped_storage(), offset, shape, stride)
        if is_parameter:
            tensor = torch.nn.Parameter(tensor, requires_grad)
        elif requires_grad:
            tensor.requires_grad_()
        tensors.append(tensor)
    return tensors


def _dtypes(index: Index) -> dict[str, torch.dtype]:
    try:
        return {name: getattr(torch, name) for name in {spec.dtype for spec in index.tensors}}
    except AttributeError as error:
        raise NotACheckpoint(
            f"torch {torch.__version__} has no {error.name}", hint="A newer torch may load it"
        ) from error
