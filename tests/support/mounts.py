"""One directory at two places, as a node has it that mounts another's."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["mounted_read_only", "unmount"]


def mounted_read_only(directory: Path, place: Path) -> None:
    """Mount ``directory`` at ``place`` too, where nothing can be written.

    Raises:
        subprocess.CalledProcessError: This process may not mount.
    """
    subprocess.run(["mount", "--bind", directory, place], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True, capture_output=True)


def unmount(place: Path) -> None:
    """End a mount, even while files of it are open."""
    subprocess.run(["umount", "--lazy", place], check=True)
