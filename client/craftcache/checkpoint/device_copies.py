"""Copies of a state dict's tensors into tensors on devices, many at once.

A module's load_state_dict copies one tensor after the other. Here a copy to a device is only noted,
and goes through a pipeline while load_state_dict goes on, cast on the device. Whatever else torch
is asked for while copies are under way waits for them first, so that hooks see, and change, what
they would have seen and changed without any of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.overrides import TorchFunctionMode

from .copies_to_device import CopiesToDevice
from .storages import PLAIN_TENSORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from craftcache.device.link import DeviceLink

    from .copies_to_device import MappedFile

__all__ = ["CopyingMode", "DeviceCopies"]

_LOOKS: Final = frozenset(
    {
        torch._C._set_grad_enabled,  # noqa: SLF001  # what torch.no_grad comes down to
        *(
            getattr(torch.Tensor, name).__get__
            for name in ("device", "dtype", "is_meta", "layout", "ndim", "requires_grad", "shape")
        ),
    }
)
"""What load_state_dict calls between copies that neither reads nor changes any value."""

_HANDS_OUT: Final = frozenset(
    {
        torch.Tensor.numpy,
        torch.Tensor.__array__,
        torch.Tensor.__dlpack__,
        torch.Tensor.data_ptr,
        torch.Tensor.storage,
        torch.Tensor.untyped_storage,
    }
)
"""What gives memory out of torch's hands: nobody can tell afterwards when it is written to."""


class DeviceCopies:
    """The copies that are under way; a context, whose end is theirs.

    It belongs to one thread.

    Args:
        find_link: Returns the way to a device; None where plain copies have to do.
        file: The file that sources lie in, where it may still be read.
        source: Named in errors.
    """

    def __init__(
        self,
        find_link: Callable[[torch.device], DeviceLink | None],
        *,
        file: MappedFile | None = None,
        source: str | None = None,
    ) -> None:
        self._find_link = find_link
        self._file = file
        self._source = source
        self._to: dict[torch.device, CopiesToDevice | None] = {}
        self.at_once = False
        """Whether each copy is waited for, since memory was handed out."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """End all copies.

        Raises:
            DeviceMemoryFull, DeviceLost, EOFError, OSError: A copy failed, and that is what a
                RuntimeError of load_state_dict comes from, if there is one.
        """
        ended = [copies.end(error) for copies in self._to.values() if copies is not None]
        failures = [failure for failure in ended if failure is not None]
        self._to.clear()
        if failures and (error is None or isinstance(error, RuntimeError)):
            raise failures[0] from None

    def take(self, target: torch.Tensor, source: torch.Tensor) -> bool:
        """Note a copy, to be made soon; False where it is left to torch."""
        copies = self._copies_to(target.device)
        if copies is None or not _can_take(target, source):
            return False
        copies.add(target.detach().view(-1), source.detach().view(-1))
        if self.at_once:
            copies.flush()
        return True

    def flush(self) -> None:
        """Wait until the devices have made all copies, or one has failed."""
        for copies in self._to.values():
            if copies is not None:
                copies.flush()

    def _copies_to(self, device: torch.device) -> CopiesToDevice | None:
        if device not in self._to:
            link = self._find_link(device)
            self._to[device] = CopiesToDevice(link, self._file, self._source) if link else None
        return self._to[device]


class CopyingMode(TorchFunctionMode):
    """While it is entered, this thread's copies are offered to ``copies``, entered before it.

    Args:
        copies: Where copies to devices go.
    """

    def __init__(self, copies: DeviceCopies) -> None:
        super().__init__()
        self._copies = copies

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> bool:
        """Make or note a copy without further arguments; False leaves it to torch."""
        return self._copies.take(target, source)

    def copied(self, source: torch.Tensor) -> None:
        """Called after each copy that was made as ever."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        _: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is torch.Tensor.copy_ and len(args) > 1:
            if len(args) == 2 and not kwargs and self.copy(*args):
                return args[0]
            self._copies.flush()
            result = func(*args, **(kwargs or {}))
            self.copied(args[1])
            return result
        if func not in _LOOKS:
            self._copies.flush()
            if func in _HANDS_OUT:
                self._copies.at_once = True
        return func(*args, **(kwargs or {}))


def _can_take(target: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether the copy is one of flat memory to flat memory, from the CPU."""
    return (
        type(target) in PLAIN_TENSORS
        and type(source) in PLAIN_TENSORS
        and source.device.type == "cpu"
        and target.layout is source.layout is torch.strided
        and target.shape == source.shape
        and source.numel() > 0
        and target.is_contiguous()
        and source.is_contiguous()
        and not (target.is_quantized or source.is_quantized)
        and not (target.is_conj() or source.is_conj() or target.is_neg() or source.is_neg())
        and (source.dtype.is_complex <= target.dtype.is_complex)  # torch warns of what is lost
    )
