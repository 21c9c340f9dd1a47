"""What torch's functions and classes would return, described: one function for each name.

Each takes what the pickle gives to the name. It raises where torch would, and where only a file
that is made to hurt asks for it (a tensor of uninitialised memory, as large as it says). What needs
no index is described no further than that: torch checks the rest when a worker loads it.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Final

from craftcache.checkpoint.index import MAX_DIMENSIONS, MAX_ELEMENTS
from craftcache.errors import NotACheckpoint

from .descriptions import Global, Ordered, Other, StorageBytes, TensorView
from .names import (
    ALLOWED_GLOBALS,
    DTYPE_BYTES,
    GRADIENT_PREFIXES,
    OMEGACONF_CLASSES,
    QUANTIZATION_SCHEMES,
    STORAGE_DTYPES,
    TENSOR_CLASSES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["KNOWN_GLOBALS", "check_view", "set_state", "storage_dtype"]

_PARAMETER: Final = "torch.nn.parameter.Parameter"

_ENCODINGS: Final = ("latin1", "latin-1", "utf-8", "utf8", "ascii")
"""Those that pickles of bytes name; others could be made to compute."""


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
        offset: Of the first element.
        shape: Its sizes.
        stride: In elements.
        dtype: Name in the module torch.

    Raises:
        NotACheckpoint: There is no such view.
    """
    if type(storage) is not StorageBytes:
        raise NotACheckpoint("a tensor without a storage")
    dtype = dtype or storage.dtype
    sizes, steps = _integers(shape), _integers(stride)
    if type(offset) is not int or len(sizes) != len(steps):
        raise NotACheckpoint("a tensor whose shape, stride or offset is none")
    if len(sizes) > MAX_DIMENSIONS or prod([size or 1 for size in sizes]) > MAX_ELEMENTS:
        raise NotACheckpoint("it holds a tensor of an absurd shape")
    room = storage.nbytes // DTYPE_BYTES[dtype]
    last = offset
    for size, step in zip(sizes, steps):  # noqa: B905  of one length
        if size < 0 or not 0 <= step <= MAX_ELEMENTS:
            raise NotACheckpoint("a tensor with a negative size or stride")
        last += (size - 1) * step
    if not 0 <= offset <= room or (last >= room and 0 not in sizes):
        raise NotACheckpoint(f"a tensor that reaches outside storage {storage.key}")
    return TensorView(dtype, storage, sizes, steps, offset)


def _integers(value: object) -> Sequence[int]:
    if type(value) is Other and value.sizes is not None:
        return value.sizes
    if type(value) is tuple or type(value) is list:
        for number in value:
            if type(number) is not int:
                raise NotACheckpoint("a shape or stride that holds no integer")
        return value
    raise NotACheckpoint("a shape or stride that is none")


def _tensor(storage: object, offset: object, shape: object, stride: object) -> TensorView:
    return check_view(storage, offset, shape, stride)


def _tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    metadata: object = None,
) -> TensorView:
    view = check_view(storage, offset, shape, stride)
    if requires_grad is False and not metadata and type(hooks) is Ordered and not hooks.items:
        return view  # nearly all are
    return _finished(view, requires_grad, hooks, metadata)


def _tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> TensorView:
    if requires_grad is not False:  # torch sets its storage afterwards, which it then refuses
        raise NotACheckpoint("a tensor of this dtype that requires a gradient")
    view = check_view(storage, offset, shape, stride, _dtype(dtype))
    return _finished(view, requires_grad, hooks, metadata)


def _finished(
    view: TensorView, requires_grad: object, hooks: object, metadata: object
) -> TensorView:
    """The tensor with what is set once it is there."""
    oddity = _hooked(hooks)
    if metadata:
        if type(metadata) is not dict or not set(metadata) <= {"conj", "neg"}:
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


def _new_parameter(data: object, requires_grad: object = True) -> TensorView | Other:
    return _parameter(data, requires_grad, None)


def _parameter(data: object, requires_grad: object, hooks: object) -> TensorView | Other:
    if type(data) is not TensorView:
        return _odd_tensor(data)
    return replace(
        data,
        is_parameter=True,
        requires_grad=_gradient(data, requires_grad),
        oddity=data.oddity or _hooked(hooks),
    )


def _parameter_with_state(
    data: object, requires_grad: object, hooks: object, state: object
) -> TensorView | Other:
    return _stated(_parameter(data, requires_grad, hooks), state)


def _from_type(function: object, kind: object, args: object, state: object) -> TensorView | Other:
    if type(function) is not Global or function.call is None or type(args) is not tuple:
        raise NotACheckpoint("a tensor of no known making")
    tensor = function.call(*args)
    if type(tensor) is not TensorView:
        return _odd_tensor(tensor)
    if type(kind) is not Global or kind.name not in ("torch.Tensor", _PARAMETER):
        raise NotACheckpoint("a tensor of no known type")
    if tensor.is_parameter != (kind.name == _PARAMETER):
        return replace(tensor, oddity=f"it holds a {kind.name} made of another type")
    return _stated(tensor, state)


def _stated(tensor: TensorView | Other, state: object) -> TensorView | Other:
    """A tensor that was given attributes."""
    parts = state if type(state) is tuple else (state,)
    if len(parts) > 2 or any(part and type(part) is not dict for part in parts):
        raise NotACheckpoint("a tensor with a malformed state")
    if type(tensor) is not TensorView or not any(parts):
        return tensor
    kind = _PARAMETER if tensor.is_parameter else "torch.Tensor"
    return replace(
        tensor, oddity=tensor.oddity or f"it holds a {kind} with more to it than its values"
    )


def _odd_tensor(value: object) -> Other:
    if type(value) is Other and value.is_tensor:
        return value
    raise NotACheckpoint("a tensor made of no tensor")


def _quantized(
    storage: object,
    offset: object,
    shape: object,
    stride: object,
    parameters: object,
    requires_grad: object,
    hooks: object,
) -> Other:
    view = check_view(storage, offset, shape, stride)
    _check_room(view)
    _hooked(hooks)
    if type(parameters) is not tuple or not parameters or type(requires_grad) is not bool:
        raise NotACheckpoint("a quantized tensor without its parameters")
    return Other("torch.Tensor", f"it holds a tensor of torch.{view.dtype}", is_tensor=True)


def _check_room(view: TensorView) -> None:
    """Refuse one of which torch would make a copy that is larger than what is in the file."""
    if prod(view.shape) * DTYPE_BYTES[view.dtype] > view.storage.nbytes:
        raise NotACheckpoint("a tensor that takes more memory than the file holds")


def _sparse(layout: object, data: object) -> Other:
    parts = data if type(data) is tuple else ()
    if (
        type(layout) is not Other
        or layout.kind != "torch.layout"
        or not any(map(_is_tensor, parts))
    ):
        raise NotACheckpoint("a sparse tensor without its layout or values")
    return Other("torch.Tensor", "it holds a sparse or nested tensor", is_tensor=True)


def _nested(*parts: object) -> Other:
    if len(parts) != 4 or not all(map(_is_tensor, parts)):
        raise NotACheckpoint("a nested tensor without its parts")
    return Other("torch.Tensor", "it holds a sparse or nested tensor", is_tensor=True)


def _is_tensor(value: object) -> bool:
    return type(value) is TensorView or (type(value) is Other and value.is_tensor)


def _meta(dtype: object, shape: object, stride: object, requires_grad: object) -> Other:
    _dtype(dtype)
    if len(_integers(shape)) != len(_integers(stride)) or type(requires_grad) is not bool:
        raise NotACheckpoint("a tensor whose shape, stride or offset is none")
    return _WITHOUT_VALUES


def _wrapper(
    kind: object,
    dtype: object,
    shape: object,
    stride: object,
    offset: object,
    layout: object,
    device: object,
    requires_grad: object,
) -> Other:
    if type(kind) is not Global or kind.name not in (*TENSOR_CLASSES, _PARAMETER):
        raise NotACheckpoint("a tensor of no known type")
    del layout, device  # whatever they are, they take no memory
    if type(offset) is not int:
        raise NotACheckpoint("a tensor whose shape, stride or offset is none")
    return _meta(dtype, shape, stride, requires_grad)


_WITHOUT_VALUES: Final = Other(
    "torch.Tensor", "it holds a tensor without values", is_tensor=True, takes_state=True
)


def _on_device(data: object, dtype: object, device: object, requires_grad: object) -> Other:
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


def _empty_tensor(*sizes: object) -> Other:
    """As torch before 0.1.11 saved them: what it is comes later, as a state."""
    if sizes:
        raise NotACheckpoint("it makes a tensor of memory that nothing was written to")
    return Other(
        "torch.Tensor", "a tensor's values are not in the file", is_tensor=True, takes_state=True
    )


def _ordered(items: object = ()) -> Ordered:
    """An OrderedDict of pairs, as Python 2 pickled it, or an empty one to be filled."""
    if type(items) is not list and type(items) is not tuple:
        raise NotACheckpoint("an OrderedDict of something else than pairs")
    made: dict[object, object] = {}
    for pair in items:
        if (type(pair) is not list and type(pair) is not tuple) or len(pair) != 2:
            raise NotACheckpoint("an OrderedDict of something else than pairs")
        made[pair[0]] = pair[1]
    return Ordered(made)


def _counter(items: object = None) -> Other:
    if items is not None and type(items) is not dict:
        raise NotACheckpoint("a Counter of something else than counts")
    return Other("collections.Counter", items=dict(items or {}), takes_state=True)


def _defaultdict(factory: object = None) -> Other:
    if factory is not None and type(factory) is not Global:
        raise NotACheckpoint("a defaultdict whose factory is no class")
    return Other("collections.defaultdict", items={}, takes_state=True)


def _bytes(text: object, encoding: object = "utf-8") -> Other:
    if type(text) is not str or encoding not in _ENCODINGS:
        raise NotACheckpoint("bytes that are made of something else than text")
    return Other("bytes")


def _bytearray(content: object = "", encoding: object = "latin-1") -> Other:
    if type(content) is Other and content.kind == "bytes":
        return Other("bytearray")
    _bytes(content, encoding)
    return Other("bytearray")


def _set(members: object = ()) -> Other:
    if type(members) is not list and type(members) is not tuple:
        raise NotACheckpoint("a set of something else than a list's members")
    return Other("set")


def _complex(real: object = 0, imaginary: object = 0) -> Other:
    if type(real) not in (int, float) or type(imaginary) not in (int, float):
        raise NotACheckpoint("a complex number of something else than numbers")
    return Other("complex")


def _size(sizes: object = ()) -> Other:
    return Other("torch.Size", sizes=tuple(_integers(sizes)))


def _device(name: object, number: object = None) -> Other:
    if type(name) is not str or type(number) not in (int, type(None)):
        raise NotACheckpoint("a device without a name")
    return Other("torch.device")


def _layout(name: object) -> Other:
    if type(name) is not str:
        raise NotACheckpoint("a layout without a name")
    return Other("torch.layout")


def set_state(target: object, state: object) -> bool:
    """Give a state to what a pickle has made; whether that is known to be allowed.

    Raises:
        NotACheckpoint: It is no state for it.
    """
    if type(target) is Ordered:
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise NotACheckpoint("attributes of an OrderedDict are no dict of names")
        target.attributes.update(state)
        return True
    if type(target) is TensorView or (type(target) is Other and target.is_tensor):
        _check_tensor_state(state)
        return True
    if type(target) is Other and target.takes_state:
        parts = state if type(state) is tuple else (state,)
        if len(parts) > 2 or any(part and type(part) is not dict for part in parts):
            raise NotACheckpoint(f"a malformed state of a {target.kind}")
        return True
    return False


def _check_tensor_state(state: object) -> None:
    """The states of tensors as torch before 0.4 saved them: a view, or what a Variable was."""
    if type(state) is tuple and len(state) == 4:
        check_view(*state)
    elif not (type(state) is tuple and len(state) in (3, 5)):
        raise NotACheckpoint("a tensor with a malformed state")


def _omegaconf(name: str) -> Callable[[], Other]:
    return lambda: Other(name, takes_state=True)


_CALLS: Final[dict[str, Callable[..., object]]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "collections.defaultdict": _defaultdict,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "builtins.set": _set,
    "_codecs.encode": _bytes,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
    _PARAMETER: _new_parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _on_device,
    "torch._utils._rebuild_device_tensor_from_numpy": _on_device,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    **dict.fromkeys(TENSOR_CLASSES, _empty_tensor),
}

_NEW: Final[dict[str, Callable[..., object]]] = {
    "collections.OrderedDict": Ordered,
    "collections.Counter": lambda: _counter(),
    "torch.Size": _size,
    _PARAMETER: _new_parameter,
    **dict.fromkeys(TENSOR_CLASSES, _empty_tensor),
    **{name: _omegaconf(name) for name in OMEGACONF_CLASSES},
}

KNOWN_GLOBALS: Final[dict[str, Global]] = {
    name: Global(name, _CALLS.get(name), _NEW.get(name))
    for name in (
        *_CALLS,
        *STORAGE_DTYPES,
        "torch.storage.TypedStorage",
        *(f"torch.{dtype}" for dtype in DTYPE_BYTES),
        *QUANTIZATION_SCHEMES,
        *ALLOWED_GLOBALS,
    )
}
"""All that a checkpoint may name."""
