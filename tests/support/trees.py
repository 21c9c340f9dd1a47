"""What stands in huggingface_hub's part of a cache, to be compared with another's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["hub_tree"]


def hub_tree(cache: Path, repo: str) -> dict[str, object]:
    """All of a repository's part of a cache: modes and bytes of files, targets of links.

    Without ``trees/``: there snapshot_download remembers the Hub's answers for its own user alone.
    """
    root = cache / f"models--{repo.replace('/', '--')}"
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.startswith("trees/"):
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = (path.stat().st_mode & 0o777, path.read_bytes())
    return found
