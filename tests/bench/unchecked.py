"""``craftcached`` without the check of indexes: it hands out the cache's own files of them.

Run as ``python -m tests.bench.unchecked python -m craftcached ARGUMENTS``, for comparison alone.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from craftcached.__main__ import main
from craftcached.store.opener import BlobOpener

if TYPE_CHECKING:
    from craftcache.cache.manifest import FileRecord
    from craftcached.store.opener import OpenedModel

_READING = os.O_RDONLY | os.O_CLOEXEC


def _take_unchecked(self: BlobOpener, opened: OpenedModel, record: FileRecord) -> bool:
    blob = os.open(self._served.path_text(record), _READING)
    opened.blobs.append(blob)
    opened.indexes.append(os.open(self._cache.index_path(record.sha256), _READING))
    return self._cache.stamps.has(record.sha256, os.fstat(blob))


if __name__ == "__main__":
    BlobOpener._take = _take_unchecked  # type: ignore[method-assign]  # what a check costs
    main(sys.argv[4:])
