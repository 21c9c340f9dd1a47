"""Locks and bundles: exactly these models, written down, and carried to where no network is.

    closure     cached models with all that they need
    lockfile    commits and digests as a file, which ``craftcache warm --locked`` keeps to
    archive     a lock and its blobs in one tar, written and read; nothing in it is believed
    publishing  from an unpacked bundle to models of a cache, without a daemon

The daemon reads bundles by ``archive`` too, and publishes by its own store.
"""

from .archive import Unpacked, unpack, write_bundle
from .closure import Closure, find_closure
from .lockfile import LockedModel, LockFile
from .publishing import import_bundle, verified_files

__all__ = [
    "Closure",
    "LockFile",
    "LockedModel",
    "Unpacked",
    "find_closure",
    "import_bundle",
    "unpack",
    "verified_files",
    "write_bundle",
]
