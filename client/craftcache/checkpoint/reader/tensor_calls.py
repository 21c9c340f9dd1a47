"""What torch's functions that rebuild tensors would return, described: one function for each.

Each takes what the pickle gives to torch's. It raises where torch would, and where only a file that
is made to hurt asks for it (a tensor of uninitialised memory, as large as it says). What needs no
index is described no further than that: torch checks the rest when a worker loads it.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Final

from craftcache.checkpoint.index import MAX_DIMENSIONS, MAX_ELEMENTS
from craftcache.errors import NotACheckpoint

from .descriptions import Global, Ordered, Other, StorageBytes, TensorView
from .names import (
    DTYPE_BYTES,
    GRADIENT_PREFIXES,
    PARAMETER,
    STORAGE_DTYPES,
    TENSOR_CLASSES,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "check_tensor_state",
    "check_view",
    "empty_tensor",
    "from_type",
    "integers",
    "meta",
    "nested",
    "new_parameter",
    "on_device",
    "parameter",
    "parameter_with_state",
    "quantized",
    "sparse",
    "storage_dtype",
    "tensor",
    "tensor_v2",
    "tensor_v3",
    "wrapper",
]


def storage_dtype(kind: object) -> str:
    """The dtype of the elements of a class of storages, by its name in the module torch.

    Raises:
        NotACheckpoint: It is none, or has none.
    """
    dtype = STORAGE_DTYPES.get(kind.name) if type(kind) is Global else None
    if dtype is None:
        raise NotACheckpoint("a storage of no dtype")
    return dtype


def check_view(
    storage: object, offset: object, shape: object, stride: object, dtype: str | None = None
) -> TensorView:
    """The tensor that is this view of a storage.

    Args:
        storage: Taken as one of its own dtype unless there is another ``dtype``.
        offset: Offset of the first element in the storage, in elements.
        shape: Its sizes.
        stride: Its strides, in elements.
        dtype: Name in the module torch.

    Raises:
        NotACheckpoint: There is no such view.
    """
    if type(storage) is not StorageBytes:
        raise NotACheckpoint("a tensor without a storage")
    dtype = dtype or storage.dtype
    sizes, steps = integers(shape), integers(stride)
    if type(offset) is not int or len(sizes) != len(steps):
        raise NotACheckpoint("a tensor whose shape, stride or offset is none")
    if prod([size or 1 for size in sizes]) > MAX_ELEMENTS:
        raise NotACheckpoint("it holds a tensor of an absurd shape")
    room = storage.nbytes // DTYPE_BYTES[dtype]
    last = offset
    for size, step in zip(sizes, steps):  # noqa: B905  of one length
        if size < 0 or step < 0:
            raise NotACheckpoint("a tensor with a negative size or stride")
        if step > MAX_ELEMENTS:
            raise NotACheckpoint("it holds a tensor of an absurd stride")
        last += (size - 1) * step
    if not 0 <= offset <= room or (last >= room and 0 not in sizes):
        raise NotACheckpoint(f"a tensor that reaches outside storage {storage.key}")
    return TensorView(dtype, storage, sizes, steps, offset)


def integers(value: object) -> Sequence[int]:
    """The sizes or strides that a pickle gives.

    Raises:
        NotACheckpoint: They are none.
    """
    if type(value) is Other and value.sizes is not None:
        return value.sizes
    if type(value) is tuple or type(value) is list:
        if len(value) > MAX_DIMENSIONS:
            raise NotACheckpoint("it holds a tensor of an absurd shape")
        for number in value:
            if type(number) is not int:
                raise NotACheckpoint("a shape or stride that holds no integer")
        return value
    raise NotACheckpoint("a shape or stride that is none")


def tensor(storage: object, offset: object, shape: object, stride: object) -> TensorView:
    """A plain tensor, as torch before 0.4 saved them."""
    return check_view(storage, offset, shape, stride)


def tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> TensorView:
    """A tensor."""
    view = check_view(storage, offset, shape, stride)
    if requires_grad is False and not metadata and type(hooks) is Ordered and not hooks.items:
        return view  # nearly all are
    return _finished(view, requires_grad, hooks, metadata)


def tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorView:
    """A tensor of a dtype that has no class of storages."""
    if requires_grad is not False:  # torch sets its storage afterwards, which it then refuses
        raise NotACheckpoint("a tensor of this dtype that requires a gradient")
    view = check_view(storage, offset, shape, stride, _dtype(dtype))
    return _finished(view, requires_grad, hooks, metadata)


def _finished(
    view: TensorView, requires_grad: object, hooks: object, metadata: object
) -> TensorView:
    """The tensor with the attributes that are set after it is made."""
    oddity = _hooked(hooks)
    if metadata:
        if type(metadata) is not dict or len(metadata) > 2 or not set(metadata) <= {"conj", "neg"}:
            raise NotACheckpoint("a tensor with unknown metadata")
        if any(metadata.values()):
            oddity = "it holds a tensor that is yet to be conjugated or negated"
    return replace(view, requires_grad=_gradient(view, requires_grad), oddity=oddity)


def _gradient(tensor: TensorView, requires_grad: object) -> bool:
    if type(requires_grad) is not bool:
        raise NotACheckpoint("a tensor whose requires_grad is neither true nor false")
    if requires_grad and not tensor.dtype.startswith(GRADIENT_PREFIXES):
        raise NotACheckpoint(f"a gradient for torch.{tensor.dtype}")
    return requires_grad


def _hooked(hooks: object) -> str | None:
    items = hooks.items if type(hooks) is Ordered else hooks
    return "it holds a tensor with hooks" if items else None


def new_parameter(data: object, requires_grad: object = True) -> TensorView | Other:
    """A parameter, as its class makes it."""
    return parameter(data, requires_grad, None)


def parameter(data: object, requires_grad: object, hooks: object) -> TensorView | Other:
    """A parameter."""
    if type(data) is not TensorView:
        return _odd_tensor(data)
    return replace(
        data,
        is_parameter=True,
        requires_grad=_gradient(data, requires_grad),
        oddity=data.oddity or _hooked(hooks),
    )


def parameter_with_state(
    data: object, requires_grad: object, hooks: object, state: object
) -> TensorView | Other:
    """A parameter with attributes."""
    return _stated(parameter(data, requires_grad, hooks), state)


def from_type(function: object, kind: object, args: object, state: object) -> TensorView | Other:
    """A tensor with attributes, or of a type of its own."""
    if type(function) is not Global or function.call is None or type(args) is not tuple:
        raise NotACheckpoint("a tensor of no known making")
    tensor = function.call(*args)
    if type(tensor) is not TensorView:
        return _odd_tensor(tensor)
    if type(kind) is not Global or kind.name not in ("torch.Tensor", PARAMETER):
        raise NotACheckpoint("a tensor of no known type")
    if tensor.is_parameter != (kind.name == PARAMETER):
        return replace(tensor, oddity=f"it holds a {kind.name} made of another type")
    return _stated(tensor, state)


def _stated(tensor: TensorView | Other, state: object) -> TensorView | Other:
    """A tensor that was given attributes."""
    parts = state if type(state) is tuple else (state,)
    if len(parts) > 2 or any(part and type(part) is not dict for part in parts):
        raise NotACheckpoint("a tensor with a malformed state")
    if type(tensor) is not TensorView or not any(parts):
        return tensor
    kind = PARAMETER if tensor.is_parameter else "torch.Tensor"
    return replace(
        tensor, oddity=tensor.oddity or f"it holds a {kind} with more to it than its values"
    )


def _odd_tensor(value: object) -> Other:
    if type(value) is Other and value.is_tensor:
        return value
    raise NotACheckpoint("a tensor made of no tensor")


def quantized(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    parameters: object,
    requires_grad: object,
    hooks: object,
) -> Other:
    """A quantized tensor."""
    view = check_view(storage, offset, shape, stride)
    _check_room(view)
    _hooked(hooks)
    if type(parameters) is not tuple or not parameters or type(requires_grad) is not bool:
        raise NotACheckpoint("a quantized tensor without its parameters")
    return Other("torch.Tensor", f"it holds a tensor of torch.{view.dtype}", is_tensor=True)


def _check_room(view: TensorView) -> None:
    """Refuse a tensor of which torch would make a copy larger than its data in the file."""
    if prod(view.shape) * DTYPE_BYTES[view.dtype] > view.storage.nbytes:
        raise NotACheckpoint("a tensor that takes more memory than the file holds")


def sparse(layout: object, data: object) -> Other:
    """A sparse tensor."""
    parts = data if type(data) is tuple and len(data) <= 4 else ()
    if (
        type(layout) is not Other
        or layout.kind != "torch.layout"
        or not any(map(_is_tensor, parts))
    ):
        raise NotACheckpoint("a sparse tensor without its layout or values")
    return Other("torch.Tensor", "it holds a sparse or nested tensor", is_tensor=True)


def nested(*parts: object) -> Other:
    """A nested tensor."""
    if len(parts) != 4 or not all(map(_is_tensor, parts)):
        raise NotACheckpoint("a nested tensor without its parts")
    return Other("torch.Tensor", "it holds a sparse or nested tensor", is_tensor=True)


def _is_tensor(value: object) -> bool:
    return type(value) is TensorView or (type(value) is Other and value.is_tensor)


def meta(dtype: object, shape: object, stride: object, requires_grad: object) -> Other:
    """A tensor without values."""
    _dtype(dtype)
    if len(integers(shape)) != len(integers(stride)) or type(requires_grad) is not bool:
        raise NotACheckpoint("a tensor whose shape, stride or offset is none")
    return _WITHOUT_VALUES


def wrapper(
    kind: object,
    dtype: object,
    shape: object,
    stride: object,
    offset: object,
    layout: object,
    device: object,
    requires_grad: object,
) -> Other:
    """A tensor that wraps others, and has no values of its own."""
    if type(kind) is not Global or kind.name not in (*TENSOR_CLASSES, PARAMETER):
        raise NotACheckpoint("a tensor of no known type")
    del layout, device  # whatever they are, they take no memory
    if type(offset) is not int:
        raise NotACheckpoint("a tensor whose shape, stride or offset is none")
    return meta(dtype, shape, stride, requires_grad)


_WITHOUT_VALUES: Final = Other(
    "torch.Tensor", "it holds a tensor without values", is_tensor=True, takes_state=True
)


def on_device(data: object, dtype: object, device: object, requires_grad: object) -> Other:
    """A tensor of a device that saves its values as another's."""
    del device  # torch.load places it where its caller says
    if type(data) is not TensorView or type(requires_grad) is not bool:
        raise NotACheckpoint("a tensor of another device without its values")
    _check_room(replace(data, dtype=_dtype(dtype)))
    return Other("torch.Tensor", "it holds a tensor of another device", is_tensor=True)


def _dtype(value: object) -> str:
    name = value.name.removeprefix("torch.") if type(value) is Global else ""
    if name not in DTYPE_BYTES:
        raise NotACheckpoint("a tensor of no dtype")
    return name


def empty_tensor(*sizes: object) -> Other:
    """A tensor as torch before 0.1.11 saved it: its content comes later, as a state."""
    if sizes:
        raise NotACheckpoint("it makes a tensor of memory that nothing was written to")
    return Other(
        "torch.Tensor", "a tensor's values are not in the file", is_tensor=True, takes_state=True
    )


def check_tensor_state(state: object) -> None:
    """The states of tensors as torch before 0.4 saved them: a view, or what a Variable was."""
    if type(state) is tuple and len(state) == 4:
        check_view(*state)
    elif not (type(state) is tuple and len(state) in (3, 5)):
        raise NotACheckpoint("a tensor with a malformed state")
