"""The globals that a checkpoint may name, and descriptions of what their calls would return.

As for tensors: each function takes what the pickle gives to the name, and raises where Python or
torch would, and where no pickler writes what only a file that is made to hurt asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from craftcache.errors import NotACheckpoint, UnsafeCheckpoint

from . import tensor_calls
from .descriptions import Global, Ordered, Other, TensorView
from .names import (
    ALLOWED_GLOBALS,
    DTYPE_BYTES,
    OMEGACONF_CLASSES,
    PARAMETER,
    QUANTIZATION_SCHEMES,
    STORAGE_DTYPES,
    TENSOR_CLASSES,
    full_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KNOWN_GLOBALS", "UNSAFE_HINT", "find_global", "set_state"]

UNSAFE_HINT: Final = "It may run code; ask its publisher for one of tensors and plain values"

_ENCODINGS: Final = ("latin1", "latin-1", "utf-8", "utf8", "ascii")
"""Codecs that pickles of bytes name; others could be made to compute for long."""


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
    return Other("torch.Size", sizes=tuple(tensor_calls.integers(sizes)))


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
        target.attributes = {**(target.attributes or {}), **state}
        return True
    if type(target) is TensorView or (type(target) is Other and target.is_tensor):
        tensor_calls.check_tensor_state(state)
        return True
    if type(target) is Other and target.takes_state:
        parts = state if type(state) is tuple else (state,)
        if len(parts) > 2 or any(part and type(part) is not dict for part in parts):
            raise NotACheckpoint(f"a malformed state of a {target.kind}")
        return True
    return False


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
    PARAMETER: tensor_calls.new_parameter,
    "torch._tensor._rebuild_from_type_v2": tensor_calls.from_type,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": tensor_calls.on_device,
    "torch._utils._rebuild_device_tensor_from_numpy": tensor_calls.on_device,
    "torch._utils._rebuild_meta_tensor_no_storage": tensor_calls.meta,
    "torch._utils._rebuild_nested_tensor": tensor_calls.nested,
    "torch._utils._rebuild_parameter": tensor_calls.parameter,
    "torch._utils._rebuild_parameter_with_state": tensor_calls.parameter_with_state,
    "torch._utils._rebuild_qtensor": tensor_calls.quantized,
    "torch._utils._rebuild_sparse_tensor": tensor_calls.sparse,
    "torch._utils._rebuild_tensor": tensor_calls.tensor,
    "torch._utils._rebuild_tensor_v2": tensor_calls.tensor_v2,
    "torch._utils._rebuild_tensor_v3": tensor_calls.tensor_v3,
    "torch._utils._rebuild_wrapper_subclass": tensor_calls.wrapper,
    **dict.fromkeys(TENSOR_CLASSES, tensor_calls.empty_tensor),
}

_NEW: Final[dict[str, Callable[..., object]]] = {
    "collections.OrderedDict": Ordered,
    "collections.Counter": lambda: _counter(),
    "torch.Size": _size,
    PARAMETER: tensor_calls.new_parameter,
    **dict.fromkeys(TENSOR_CLASSES, tensor_calls.empty_tensor),
    **{name: _omegaconf(name) for name in OMEGACONF_CLASSES},
}

_COPYING: Final = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
    }
)
"""Globals whose calls take time in proportion to their arguments."""

KNOWN_GLOBALS: Final[dict[str, Global]] = {
    name: Global(name, _CALLS.get(name), _NEW.get(name), name in _COPYING)
    for name in (
        *_CALLS,
        *STORAGE_DTYPES,
        "torch.storage.TypedStorage",
        *(f"torch.{dtype}" for dtype in DTYPE_BYTES),
        *QUANTIZATION_SCHEMES,
        *ALLOWED_GLOBALS,
    )
}
"""All globals that a checkpoint may name."""


def find_global(module: str, name: str) -> Global:
    """What a pickle names.

    Raises:
        UnsafeCheckpoint: torch's weights-only loader does not know it either.
    """
    full = full_name(module, name)
    found = KNOWN_GLOBALS.get(full)
    if found is None:
        raise UnsafeCheckpoint(f"loading it would call {full}", hint=UNSAFE_HINT)
    return found
