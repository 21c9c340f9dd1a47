"""A cache with three kinds of source in it, and all that a load of them may give."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from craftcache.errors import CraftcacheError
from craftcache.sources import FILENAMES

if TYPE_CHECKING:
    from pathlib import Path

    from craftcache import Client
    from tests.support.daemons import DaemonProcess

__all__ = ["Outcome", "export_bytes", "outcome", "settled", "write_export"]


def export_bytes(value: float, numel: int = 64) -> dict[str, bytes]:
    """The two files of an export whose tensors all hold ``value``."""
    files = {}
    for name in FILENAMES.values():
        buffer = io.BytesIO()
        state = {"w": torch.full((numel,), value), "v": torch.full((numel, 2), value + 0.5)}
        torch.save({"best_state": state, "xp.cfg": "a: 1\n", "of": name}, buffer)
        files[name] = buffer.getvalue()
    return files


def write_export(directory: Path, value: float) -> Path:
    """Put such an export into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in export_bytes(value).items():
        (directory / name).write_bytes(content)
    return directory


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a load gave.

    Attributes:
        served_by: Who served it; the error's class where it failed.
        is_wrong: Whether a tensor held anything but the value, or lacked.
    """

    served_by: str
    is_wrong: bool = False


def outcome(client: Client, source: str, value: float) -> Outcome:
    """Load an export whose tensors must all hold ``value``."""
    try:
        export = client.load(source)
    except CraftcacheError as error:
        return Outcome(type(error).__name__)
    is_right = all(
        checkpoint["best_state"].keys() == {"w", "v"}
        and checkpoint["of"] == name
        and bool((checkpoint["best_state"]["w"] == value).all())
        and bool((checkpoint["best_state"]["v"] == value + 0.5).all())
        for name, checkpoint in (
            (FILENAMES["lm"], export.lm),
            (FILENAMES["compression"], export.compression),
        )
    )
    return Outcome(export.served_by, not is_right)


def settled(daemon: DaemonProcess, name: str) -> None:
    """Wait until a watch serves its first generation."""
    with daemon.client() as client:
        for generation in client.follow(name):
            assert generation.number >= 1
            return
