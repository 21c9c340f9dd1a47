"""Published files that were fetched from the same URL with another signature.

A presigned URL is different each time, and so another source, but its path and the hash in its
file's name stay the same. Host and path must both match: eight hex digits of a hash alone are too
few to tell that a file from elsewhere is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from craftcache.sources import shown_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from craftcache.digests import Digest

    from .manifest import FileRecord, Manifest

__all__ = ["same_file"]


def same_file(
    published: Iterable[tuple[str, Manifest]], url: str, digest: Digest | None
) -> Iterator[FileRecord]:
    """The records of the file at ``url``, whatever the query it was fetched with.

    Args:
        published: Manifests that only trusted users can have written, with their keys.
        url: URL of the file.
        digest: Digest that its name promises; without one, nothing shows that it is the same file.
    """
    if digest is None or digest.algorithm == "git-sha1":
        return
    origin = shown_url(url)
    for _, manifest in published:
        for record in manifest.files:
            if record.origin == origin and record.sha256.startswith(digest.hex):
                yield record
