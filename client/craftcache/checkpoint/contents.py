"""What a loaded checkpoint holds, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["Contents"]


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors of one checkpoint, counted.

    Attributes:
        tensors: Number of tensors.
        parameters: Number of elements of all tensors.
        bytes: Bytes of all elements.
        dtypes: Their dtypes, like ``float16``, in order of appearance.
        pretrained: The codec that a reference names instead of holding tensors, or None.
    """

    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    pretrained: str | None

    @classmethod
    def of(cls, checkpoint: object) -> Contents:
        """Count what ``torch.load`` would have returned."""
        tensors = list(_tensors(checkpoint))
        name = checkpoint.get("pretrained") if isinstance(checkpoint, Mapping) else None
        return cls(
            tensors=len(tensors),
            parameters=sum(tensor.numel() for tensor in tensors),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            dtypes=tuple(dict.fromkeys(str(t.dtype).removeprefix("torch.") for t in tensors)),
            pretrained=name if isinstance(name, str) else None,
        )


def _tensors(value: object) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
