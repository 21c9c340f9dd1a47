"""Tensors from an index and the file it describes: what torch.load would have returned.

On the CPU the file is mapped, privately: nothing is read before it is used, what a worker writes
only it can see, and all workers share the pages that none has written to. A storage keeps the
map alive; with the last one it goes. Other devices get a copy, by craftcache.device where they have
streams, and hold nothing of the file afterwards.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from craftcache.checkpoint import weights_only
from craftcache.device.link import find_link
from craftcache.errors import NotACheckpoint

from .descriptor import read_into
from .index import ITEM_BYTES, assemble
from .mapped import map_privately
from .onto_device import bring

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

    from craftcache.device.link import DeviceLink

    from .index import Index, Storage

__all__ = ["build", "build_all", "build_mapped"]


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


def build_mapped(index: Index, fd: int, *, mapped: bool) -> tuple[object, mmap.mmap | None]:
    """As ``build`` for the CPU, of a file that an index describes, and the map that it lies in.

    Args:
        index: Index of the file, one without a ``reason``.
        fd: The file, open for reading; it may be closed afterwards.
        mapped: As in ``build``; unmapped, all of it is in memory, and there is no map.
    """
    spans = _Spans(index, fd, mapped=mapped)
    return build_all(index, torch.device("cpu"), spans.take), spans.map


class _Spans:
    """The storages of a file as flat tensors, mapped or read."""

    def __init__(self, index: Index, fd: int, *, mapped: bool) -> None:
        self._fd = fd
        self._unaligned = _unaligned(index)
        self.map = map_privately(fd, index.file_size) if mapped and index.storages else None
        """The map; None if the storages are read."""

    def take(self, storage: Storage, dtype: torch.dtype) -> torch.Tensor:
        """All of a storage as elements of ``dtype``; its own storage, of exactly that size."""
        count = storage.nbytes // dtype.itemsize
        if not count:
            return torch.empty(0, dtype=dtype, device="cpu")
        if self.map is not None and storage not in self._unaligned:
            return torch.frombuffer(self.map, dtype=dtype, count=count, offset=storage.offset)
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
