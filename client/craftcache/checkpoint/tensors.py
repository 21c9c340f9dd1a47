"""Tensors from an index and the file it describes: what torch.load would have returned.

On the CPU the file is mapped, privately: nothing is read before it is used, what a worker writes
only it can see, and all workers share the pages that none has written to. A storage keeps the
map alive; with the last one it goes. Other devices get one transfer for each storage, through
pinned memory where that is faster, and hold nothing of the file afterwards.
"""

from __future__ import annotations

import mmap
import os
import sys
from itertools import chain, cycle
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import torch
from torch.multiprocessing.reductions import StorageWeakRef  # it has no other home
from torch.overrides import TorchFunctionMode

from craftcache.checkpoint import weights_only
from craftcache.errors import InvalidSource, NotACheckpoint, UnknownDevice

from .descriptor import read_into
from .index import ITEM_BYTES, assemble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from .index import Index, Storage

__all__ = ["build", "copy_into", "is_whole", "load_state_dict", "release", "storage_of"]

_MAP_NORESERVE: Final = 0x4000
"""From Linux's mman.h: a private map larger than memory is refused without it."""

_PAGEMAP_BYTES: Final = 8
_PAGE_OF_FILE: Final = 1 << 61
_PAGE_SWAPPED: Final = 1 << 62
_PAGE_PRESENT: Final = -(1 << 63)
"""Format of /proc/self/pagemap, see proc(5): the size of an entry, and its bits for a page; the
last is the highest bit, as a signed number has it."""

_PINNED_BYTES: Final = 32 * 1024 * 1024
"""Size of each of the two pinned buffers: large enough to hide the start of a transfer."""

_MAPS: Final[WeakValueDictionary[int, mmap.mmap]] = WeakValueDictionary()
"""The maps of files that tensors of this process lie in, by their address."""


def build(
    index: Index,
    fd: int,
    *,
    device: torch.device,
    mapped: bool = True,
    source: str | None = None,
) -> object:
    """What ``torch.load(file, map_location=device)`` would have returned.

    Args:
        index: Index of the file.
        fd: The file, open for reading; it may be closed afterwards.
        device: Device of all tensors.
        mapped: Whether the file may be mapped; False on a network file system, where a map may
            die or hang: then it is read.
        source: Named in errors.

    Raises:
        UnsafeCheckpoint, NotACheckpoint: Of a file that only torch can load.
        OSError: The file could not be mapped or read.
    """
    if index.reason is not None:
        return weights_only.load(fd, map_location=device, source=source)
    spans = _Spans(index, fd, mapped=mapped)
    if device.type == "cpu":
        return assemble(index.tree, _build_tensors(index, spans.take, device))
    with _Transfer(spans, device) as transfer:
        return assemble(index.tree, _build_tensors(index, transfer.take, device))


def copy_into(
    index: Index,
    fd: int,
    module: torch.nn.Module,
    *,
    key: str | None,
    mapped: bool = True,
    source: str | None = None,
) -> None:
    """Copy a state dict straight into ``module``, cast to its parameters' dtypes and devices.

    The module's own load_state_dict does it, strictly, from tensors that are still in the file:
    its hooks see the keys that they expect, and nothing but the storage under way is in memory
    beside the module.

    Args:
        index: Index of the file.
        fd: The file, open for reading; it may be closed afterwards.
        module: Module that takes the values; its parameters keep dtype and device.
        key: Key of the state dict in the checkpoint's top-level dict; None if that is one itself.
        mapped: As in ``build``; unmapped, the file's tensors are in memory while this runs.
        source: Named in errors.

    Raises:
        InvalidSource: There is no state dict under ``key``.
        UnknownDevice: A parameter or buffer is on the meta device.
        RuntimeError: As load_state_dict does, listing missing and unexpected keys and the sizes
            that differ.
    """
    cpu = torch.device("cpu")
    if index.reason is not None:
        checkpoint = build(index, fd, device=cpu, source=source)
        load_state_dict(checkpoint, module, key=key, source=source)
        return
    spans = _Spans(index, fd, mapped=mapped)
    checkpoint = assemble(index.tree, _build_tensors(index, spans.take, cpu))
    with _Releasing():
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


def is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all of its storage, in order."""
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def storage_of(tensor: torch.Tensor) -> StorageWeakRef:
    """The storage that a tensor lies in, held weakly.

    Two are equal if their tensors share one. A storage's own object tells less: torch 2.1 makes a
    new one at each look.
    """
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def release(tensor: torch.Tensor) -> None:
    """Take the pages of a mapped file that hold a tensor's storage out of this process.

    A later use reads them anew. All are kept where one of them was written to, by whatever means:
    that is nowhere else. Pages that hold something else as well are kept, and so is all that is no
    map of a file.
    """
    try:
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
    except (NotImplementedError, RuntimeError):  # one without memory of its own: sparse, fake ...
        return
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (start + storage.nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    for reference in _MAPS.valuerefs():
        mapped = reference()
        if (
            mapped is not None
            and first < end
            and 0 <= first - reference.key < len(mapped)
            and _is_unwritten(first, end)
        ):
            mapped.madvise(mmap.MADV_DONTNEED, first - reference.key, end - first)


def _is_unwritten(first: int, end: int) -> bool:
    """Whether none of these pages of a private map is a copy of the process's own.

    The kernel alone knows: torch counts what is written by its operators, and neither what numpy
    or ``tensor.data`` writes nor what is written to another tensor of the storage.
    """
    count = (end - first) // mmap.PAGESIZE
    try:
        pages = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc, or a kernel without it
        return False
    try:
        read = bytearray(count * _PAGEMAP_BYTES)
        if os.preadv(pages, [read], first // mmap.PAGESIZE * _PAGEMAP_BYTES) != len(read):
            return False
    except OSError:
        return False
    finally:
        os.close(pages)
    flags = torch.frombuffer(read, dtype=torch.int64)
    in_use = flags.bitwise_and(_PAGE_PRESENT | _PAGE_SWAPPED).ne(0)
    return not bool(in_use.logical_and(flags.bitwise_and(_PAGE_OF_FILE).eq(0)).any())


class _Spans:
    """The storages of a file as flat tensors, mapped or read."""

    def __init__(self, index: Index, fd: int, *, mapped: bool) -> None:
        self._fd = fd
        self._unaligned = _unaligned(index)
        self._map = _map_privately(fd, index.file_size) if mapped and index.storages else None
        if self._map is not None:
            _MAPS[torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()] = self._map

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


class _Releasing(TorchFunctionMode):
    """While it is entered, the source of each ``copy_`` in this thread is released afterwards."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        _: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.copy_ and len(args) > 1:
            release(args[1])
        return result


def _map_privately(fd: int, size: int) -> mmap.mmap:
    """A copy-on-write map of the whole file."""
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    if sys.version_info >= (3, 13):  # before, a map holds a descriptor of its own while it lives
        return mmap.mmap(fd, size, flags=flags, prot=prot, trackfd=False)
    return mmap.mmap(fd, size, flags=flags, prot=prot)


class _Transfer:
    """The storages of a file as flat tensors on another device, one transfer for each.

    For CUDA they go through two pinned buffers in turn, so that one is filled while the other
    is on its way. Leaving the context waits until all have arrived.
    """

    def __init__(self, spans: _Spans, device: torch.device) -> None:
        self._spans = spans
        self._device = device
        self._staging: Iterator[tuple[torch.Tensor, torch.cuda.Event]] | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            self._staging = cycle(
                (
                    torch.empty(_PINNED_BYTES, dtype=torch.uint8, device="cpu", pin_memory=True),
                    event,
                )
                for event in (_event(), _event())
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def take(self, storage: Storage, dtype: torch.dtype) -> torch.Tensor:
        """All of a storage as elements of ``dtype``; its own storage, of exactly that size."""
        flat = self._spans.take(storage, torch.uint8)
        if self._staging is None:
            moved = flat.to(self._device)
        else:
            moved = torch.empty(storage.nbytes, dtype=torch.uint8, device=self._device)
            self._send(flat, moved, self._staging)
        return torch.empty(0, dtype=dtype, device=self._device).set_(moved.untyped_storage())

    def _send(
        self,
        flat: torch.Tensor,
        moved: torch.Tensor,
        staging: Iterator[tuple[torch.Tensor, torch.cuda.Event]],
    ) -> None:
        for start in range(0, flat.numel(), _PINNED_BYTES):
            part, target = (whole[start : start + _PINNED_BYTES] for whole in (flat, moved))
            buffer, sent = next(staging)
            sent.synchronize()
            staged = buffer[: part.numel()].copy_(part)
            target.copy_(staged, non_blocking=True)
            sent.record(torch.cuda.current_stream(self._device))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped


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
