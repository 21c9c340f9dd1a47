"""Links by which unmodified programs find files from URLs as torch.hub would have cached them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from craftcache.sources import url_digest

from .durable import make_directory, staging_name, sync_directory

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TorchLinks"]

NAME_MAX = 255
"""Longest file name, in bytes, on all common file systems."""


class TorchLinks:
    """The directory that unmodified programs are given as ``TORCH_HOME``; has no other state.

    Args:
        home: The directory.
        staging: Directory of links before they have a final name; on the same file system.
    """

    def __init__(self, home: Path, staging: Path) -> None:
        self.home = home
        self.checkpoints = home / "hub" / "checkpoints"
        self._staging = staging

    def link(self, url: str, blob: Path) -> None:
        """Link a published file from ``url`` for torch.hub, if the URL's file name has its hash.

        Under a name without a hash, torch.hub would get whichever file came last with that name.
        """
        link = self.path(url, blob.name)
        if link is None:
            return
        make_directory(link.parent)
        staged = self._staging / staging_name()
        os.symlink(os.path.relpath(blob, link.parent), staged)
        os.replace(staged, link)  # of two files with such a name, the one that was published last
        sync_directory(link.parent)

    def path(self, url: str, sha256: str) -> Path | None:
        """Path of torch.hub's link to a file from ``url``; None if its name has not its hash."""
        digest, name = url_digest(url), urlsplit(url).path.rpartition("/")[2]
        is_its_hash = digest is not None and sha256.startswith(digest.hex)
        if not is_its_hash or len(name.encode()) > NAME_MAX:
            return None
        return self.checkpoints / name

    def sweep(self) -> None:
        """Remove torch.hub's links whose file is gone."""
        for link in self.checkpoints.glob("*"):
            if not link.exists():
                link.unlink(missing_ok=True)
