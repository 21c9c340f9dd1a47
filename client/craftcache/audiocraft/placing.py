"""Where a model is built: on its device at once.

AudioCraft makes most of a language model on its device, but the embeddings, the output layers and
all of a codec on the CPU, and moves them afterwards. Norms of weights read what they are made
from, so that this cannot be left untouched until it is moved. While ``placed_on`` is entered, in
its thread, what asks for no device is made on the model's own. Code that means the CPU is run
``anywhere_else``.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["anywhere_else", "placed_on"]


class _Thread(threading.local):
    """The device that is entered in each thread."""

    device: torch.device | None = None


_thread: Final = _Thread()


@contextmanager
def placed_on(device: torch.device) -> Iterator[None]:
    """Make tensors on ``device`` in this block; on the CPU that changes nothing."""
    if device.type == "cpu":
        yield
        return
    with _entered(device):
        yield


@contextmanager
def anywhere_else() -> Iterator[None]:
    """Make tensors in this block where they would be made without ``placed_on``."""
    device = _thread.device
    if device is None:
        yield
        return
    device.__exit__(None, None, None)
    _thread.device = None
    try:
        yield
    finally:
        device.__enter__()
        _thread.device = device


@contextmanager
def _entered(device: torch.device) -> Iterator[None]:
    with device:
        _thread.device = device
        try:
            yield
        finally:
            _thread.device = None
