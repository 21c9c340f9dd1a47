"""Descriptions: the reader's values for a pickle, in place of torch's objects.

Plain values, dicts, lists and tuples are themselves. All else is one of these. None of them runs
anything: a description says what torch would make, and what is not said exactly says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Global", "Ordered", "Other", "StorageBytes", "TensorView", "kind_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A class or function that the pickle names, and that torch's weights-only loader knows.

    Attributes:
        name: Module and name, joined by a dot.
        call: Describes what calling it returns; None where no checkpoint calls it.
        new: Describes what its ``__new__`` returns, without ``__init__``; None as for ``call``.
        copies: Whether calling it takes the longer, the more it is given.
    """

    name: str
    call: Callable[..., object] | None
    new: Callable[..., object] | None
    copies: bool = False


@dataclass(slots=True, eq=False)  # not frozen: there are many, made twice as fast
class StorageBytes:
    """One storage.

    Attributes:
        key: The file's name for it.
        dtype: Name in the module torch.
        nbytes: Its size in bytes.
        oddity: Property that an index cannot describe, or None.
    """

    key: str | int
    dtype: str
    nbytes: int
    oddity: str | None = None


@dataclass(slots=True, eq=False)  # not frozen: there are many, made twice as fast
class TensorView:
    """One strided tensor.

    Attributes:
        dtype: Name in the module torch.
        storage: Storage that it is a view of; the view lies inside.
        shape: Its sizes.
        stride: Its strides, in elements.
        offset: Offset of its first element in the storage, in elements.
        requires_grad: Whether torch records gradients of it.
        is_parameter: Whether it is a torch.nn.Parameter.
        oddity: Property that an index cannot describe, or None.
    """

    dtype: str
    storage: StorageBytes
    shape: Sequence[int]
    stride: Sequence[int]
    offset: int
    requires_grad: bool = False
    is_parameter: bool = False
    oddity: str | None = None


@dataclass(slots=True, eq=False)
class Ordered:
    """An OrderedDict.

    Attributes:
        items: Its items in their order.
        attributes: Its ``__dict__``, where that was set.
    """

    items: dict[object, object] = field(default_factory=dict)
    attributes: dict[str, object] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Other:
    """An object that torch may load and an index cannot describe.

    Attributes:
        kind: Its type, for people.
        reason: What an index says in its place; by default that the checkpoint holds the kind.
        items: Items of a mapping; None for another kind.
        sizes: Sizes of a torch.Size; None for another kind.
        is_tensor: Whether torch makes a tensor of it.
        takes_state: Whether torch may give it a state.
    """

    kind: str
    reason: str = ""
    items: dict[object, object] | None = None
    sizes: tuple[int, ...] | None = None
    is_tensor: bool = False
    takes_state: bool = False


def kind_of(value: object) -> str:
    """What to call a value, for people."""
    if type(value) is Global:
        return value.name
    if type(value) is Other:
        return value.kind
    if type(value) is TensorView:
        return "torch.Tensor"
    if type(value) is StorageBytes:
        return "storage"
    return "collections.OrderedDict" if type(value) is Ordered else type(value).__name__
