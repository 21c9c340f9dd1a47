"""Checkpoints for tests: random ones, what it means that two are the same, and their files."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st

from craftcache.checkpoint.index import ITEM_BYTES, Index, dump, parse
from craftcache.checkpoint.reader import read_index

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = [getattr(torch, name) for name in ITEM_BYTES if hasattr(torch, name)]
GRADIENTS = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    torch.complex128,
]
"""Dtypes of which torch.load can load a tensor that requires grad; it fails on others."""


@contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """A descriptor of a file with that content, without a name."""
    fd = os.memfd_create("checkpoint")
    try:
        os.pwrite(fd, content, 0)
        yield fd
    finally:
        os.close(fd)


def saved(checkpoint: object, **options: Any) -> bytes:
    """What torch.save writes of it."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer, **options)
    return buffer.getvalue()


def loaded(content: bytes) -> object:
    """What torch.load makes of it."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def index_of(fd: int) -> Index:
    """The index that the daemon would write of the file."""
    return parse(dump(read_index(fd)), file_size=os.fstat(fd).st_size)


def maps_of(fd: int) -> list[str]:
    """The lines of this process's memory map that belong to the file."""
    inode = str(os.fstat(fd).st_ino)
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "checkpoint" in line and inode in line.split()]


def resident_bytes(fd: int) -> int:
    """How much of the file this process has mapped into its memory."""
    inode, lines = str(os.fstat(fd).st_ino), iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if inode in line.split():
            return int(next(row for row in lines if row.startswith("Rss:")).split()[1]) * 1024
    return 0


def assert_same(ours: object, theirs: object) -> None:
    """Both are equal in all that a user can observe, which objects are one object included."""
    _Comparison().compare(ours, theirs, "checkpoint")


class _Comparison:
    """Pairs up the objects and storages of two checkpoints as it goes."""

    def __init__(self) -> None:
        self._partners: dict[tuple[str, int], int] = {}
        self._kept: list[object] = []

    def _pair(self, kind: str, ours: int, theirs: int, where: str) -> None:
        assert self._partners.setdefault((f"our {kind}", ours), theirs) == theirs, where
        assert self._partners.setdefault((f"their {kind}", theirs), ours) == ours, where

    def compare(self, ours: Any, theirs: Any, where: str) -> None:
        assert type(ours) is type(theirs), where
        self._kept += [ours, theirs]
        if isinstance(ours, torch.Tensor):
            self._pair("object", id(ours), id(theirs), where)
            self._compare_tensors(ours, theirs, where)
        elif isinstance(ours, dict):
            self._pair("object", id(ours), id(theirs), where)
            self.compare(list(ours), list(theirs), f"{where}.keys()")
            for position, (mine, yours) in enumerate(
                zip(ours.values(), theirs.values(), strict=True)
            ):
                self.compare(mine, yours, f"{where}[{position}]")
            if isinstance(ours, OrderedDict):
                self.compare(vars(ours), vars(theirs), f"vars({where})")
        elif isinstance(ours, list | tuple):
            assert len(ours) == len(theirs), where
            for position, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
                self.compare(mine, yours, f"{where}[{position}]")
        elif isinstance(ours, float) and math.isnan(theirs):
            assert math.isnan(ours), where
        else:
            assert repr(ours) == repr(theirs), where

    def _compare_tensors(self, ours: torch.Tensor, theirs: torch.Tensor, where: str) -> None:
        for name in ("dtype", "device", "layout", "shape", "requires_grad", "is_leaf", "_base"):
            assert getattr(ours, name) == getattr(theirs, name), f"{where}.{name}"
        for name in ("stride", "storage_offset", "is_contiguous", "is_conj", "is_neg", "_is_view"):
            assert getattr(ours, name)() == getattr(theirs, name)(), f"{where}.{name}()"
        assert vars(ours) == vars(theirs), where
        mine, yours = _storage_bytes(ours), _storage_bytes(theirs)
        assert mine.numel() == yours.numel(), f"size of the storage of {where}"
        assert torch.equal(mine, yours), f"bytes of the storage of {where}"
        if mine.numel():
            self._pair("storage", mine.data_ptr(), yours.data_ptr(), where)


def _storage_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


@st.composite
def storages(draw: st.DrawFn) -> torch.Tensor:
    """All of a new storage, flat, in one dtype; now and then an empty one."""
    dtype = draw(st.sampled_from(DTYPES))
    count = draw(st.integers(0, 24))
    content = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype is torch.bool:
        content = bytes(byte & 1 for byte in content)
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype)


@st.composite
def views(draw: st.DrawFn, flat: torch.Tensor) -> torch.Tensor:
    """A view of a storage: whole, reshaped, transposed, expanded, a slice, a scalar, anything."""
    room = flat.numel()
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    offset = draw(st.integers(0, room))
    left = room - offset - 1
    stride = []
    for size in shape:
        most = left // (size - 1) if size > 1 and left > 0 else 0 if size > 1 else 5
        step = draw(st.integers(0, most))
        left -= step * max(size - 1, 0)
        stride.append(step)
    if left < 0 and 0 not in shape:
        return flat
    kind = draw(st.sampled_from(["whole", "reshaped", "strided"]))
    if kind == "strided":
        return flat.as_strided(shape, stride, offset)
    if kind == "reshaped":
        columns = draw(st.sampled_from([n for n in range(1, room + 1) if room % n == 0] or [1]))
        return flat.view(-1, columns).t() if draw(st.booleans()) else flat.view(-1, 1, columns)
    return flat


@st.composite
def tensors(draw: st.DrawFn, pool: list[torch.Tensor]) -> torch.Tensor:
    """A tensor upon one of the storages of ``pool``."""
    view = draw(views(pool[draw(st.integers(0, len(pool) - 1))])).detach()
    if not (view.is_floating_point() or view.is_complex()):
        return view
    match draw(st.sampled_from(["plain", "plain", "grad", "parameter", "frozen"])):
        case "grad" if view.dtype in GRADIENTS:
            return view.requires_grad_()
        case "parameter":
            return torch.nn.Parameter(view)
        case "frozen":
            return torch.nn.Parameter(view, requires_grad=False)
    return view


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text()
)

KEYS = st.text() | st.integers() | st.none() | st.tuples(st.text(), st.integers())


@st.composite
def checkpoints(draw: st.DrawFn) -> object:
    """A nest of containers, scalars and tensors, of which some are one and some share storage."""
    pool = draw(st.lists(storages(), min_size=1, max_size=4))
    own = draw(st.lists(tensors(pool), min_size=1, max_size=8))
    leaves = SCALARS | st.integers(0, len(own) - 1).map(own.__getitem__)
    return draw(st.recursive(leaves, _containers, max_leaves=20))


def _containers(children: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    dicts = st.dictionaries(KEYS, children, max_size=4)
    return (
        dicts
        | st.builds(_ordered, dicts, st.dictionaries(st.text(min_size=1), children, max_size=2))
        | st.lists(children, max_size=4)
        | st.lists(children, max_size=4).map(tuple)
    )


def _ordered(items: dict[Any, object], attributes: dict[str, object]) -> OrderedDict[Any, object]:
    ordered = OrderedDict(items)
    vars(ordered).update(attributes)
    return ordered


def rezipped(content: bytes, *, compress: bool = False, **changed: bytes) -> bytes:
    """The same archive written by another program, with the records ``changed`` by name."""
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(buffer, "w", method) as target,
    ):
        for name in source.namelist():
            target.writestr(name, changed.get(name.partition("/")[2], source.read(name)))
    return buffer.getvalue()
