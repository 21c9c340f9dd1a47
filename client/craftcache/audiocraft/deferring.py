"""Random initialisation, put off until it is known which tensors need it.

Most of the time of building a model goes into random numbers that its checkpoint overwrites at
once. While a Deferral is entered, in its thread, a random fill of a whole tensor is noted and not
drawn. The note is dropped when the tensor is overwritten or freed; the fill is drawn when something
reads the tensor, or in the end. So what no checkpoint overwrites is initialised as it would have
been, with other random numbers of the same distribution, and what is overwritten meanwhile takes
up no memory.

It works below autograd and on storages: whichever alias of a tensor is read, nobody sees memory
that was not initialised. What bypasses torch's operators (``data_ptr``, another thread) it cannot
see; code that may do so is run ``suspended``.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # documented; it has no other home
from torch.utils._pytree import tree_flatten

from craftcache.checkpoint.storages import is_whole, storage_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.multiprocessing.reductions import StorageWeakRef
    from typing_extensions import Self

__all__ = ["Deferral", "deferrable", "suspended"]

_aten: Final = torch.ops.aten

_FILLS: Final = frozenset({_aten.uniform_.default, _aten.normal_.default})
"""What is noted. Other random fills are rare in modules; they are drawn where they stand."""

_OVERWRITES: Final = frozenset(
    {_aten.copy_.default, _aten.zero_.default, _aten.fill_.Scalar, _aten.fill_.Tensor}
)
"""After these nothing is left of what the first argument held."""


class _Fill(NamedTuple):
    """A random fill that a storage waits for."""

    dtype: torch.dtype
    draw: Callable[[torch.Tensor], object]


class Deferral(TorchDispatchMode):
    """The random fills that the tensors of one model wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[StorageWeakRef, _Fill] = {}

    def __enter__(self) -> Self:
        _thread.deferral = self
        super().__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        _thread.deferral = None

    def note(self, tensor: torch.Tensor, draw: Callable[[torch.Tensor], object]) -> None:
        """Note that ``draw`` is to fill all of ``tensor``, and each element alike."""
        self._waiting[storage_of(tensor)] = _Fill(tensor.dtype, draw)

    def forget(self, tensor: torch.Tensor) -> None:
        """Drop the note of a tensor that is overwritten as a whole, unseen by this."""
        self._waiting.pop(storage_of(tensor), None)

    def draw(self) -> None:
        """Fill what still waits."""
        for waiting in list(self._waiting):
            self._draw(waiting)

    def _draw(self, waiting: StorageWeakRef) -> None:
        fill = self._waiting.pop(waiting, None)
        if fill is None:
            return
        if waiting.expired():  # nobody has it any more
            return
        storage = torch.UntypedStorage._new_with_weak_ptr(waiting.cdata)  # noqa: SLF001
        flat = torch.empty(0, dtype=fill.dtype, device=storage.device)
        flat.set_(storage, 0, (storage.nbytes() // fill.dtype.itemsize,))  # type: ignore[call-overload]
        with torch.no_grad():
            fill.draw(flat)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        _: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in _FILLS and is_whole(args[0]):
            target, *numbers = args
            self.note(target, lambda tensor: func(tensor, *numbers, **kwargs))
            return target
        if not self._waiting or _is_view(func):
            return func(*args, **kwargs)
        overwritten = func in _OVERWRITES and is_whole(args[0])
        for read in tree_flatten((args[1:] if overwritten else args, kwargs))[0]:
            if isinstance(read, torch.Tensor):
                self._draw(storage_of(read))
        if overwritten:
            self._waiting.pop(storage_of(args[0]), None)
        return func(*args, **kwargs)


@cache
def _is_view(func: torch._ops.OpOverload) -> bool:
    """Whether an operator gives another view of what it gets, and changes nothing in it."""
    schema = func._schema  # noqa: SLF001  # torch 2.1 has no other way to ask
    aliases = [argument.alias_info for argument in schema.arguments if argument.alias_info]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


class _Thread(threading.local):
    """The deferral that is entered in each thread."""

    deferral: Deferral | None = None


_thread: Final = _Thread()


@contextmanager
def suspended() -> Iterator[None]:
    """Draw random fills in this block as ever, inside a deferral too."""
    deferral = _thread.deferral
    if deferral is None:
        yield
        return
    deferral.__exit__(None, None, None)
    try:
        yield
    finally:
        deferral.__enter__()


def deferrable(draw: Callable[[torch.Tensor], object]) -> Callable[[torch.Tensor], object]:
    """``draw``, but noted inside a deferral, for a fill that reads what it has drawn.

    Args:
        draw: Fills a tensor, each element alike.
    """

    def fill(tensor: torch.Tensor) -> object:
        deferral = _thread.deferral
        if deferral is None or not is_whole(tensor):
            return draw(tensor)
        deferral.note(tensor, draw)
        return tensor

    return fill
