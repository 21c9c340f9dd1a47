"""What a cache records of the files of one commit, under whichever name that was published.

A commit never changes, so a file of it is the same file whoever asks for it: by a branch, by the
commit itself, as a superseded revision, or by what is being published or removed at this moment.
Where links and refs alone say which blob a file is, these records are what they are held to. All
calls block; the first reads all manifests of the cache.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from .underway import underway

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .directory import CacheDir
    from .manifest import Manifest

__all__ = ["contradicted", "recorded", "repositories_at"]


def recorded(
    cache: CacheDir, repo_id: str, commit: str, *, ours: bool = False
) -> dict[str, frozenset[str]]:
    """The sha256s of the files of one commit, by name; more than one where records differ.

    Args:
        cache: The cache whose manifests are looked at.
        repo_id: The repository.
        commit: The commit.
        ours: Whether to leave out manifests that an untrusted user can have written.
    """
    found: dict[str, frozenset[str]] = {}
    for manifest in _at(cache, commit, ours=ours):
        if _repository(manifest) == repo_id:
            for record in manifest.files:
                found[record.filename] = found.get(record.filename, frozenset()) | {record.sha256}
    return found


def contradicted(
    cache: CacheDir, repo_id: str, commit: str, found: Mapping[str, str], *, ours: bool = False
) -> list[str]:
    """Names of those files for which the cache records another sha256.

    Args:
        cache: See recorded.
        repo_id: See recorded.
        commit: See recorded.
        found: The sha256 of each file, by name.
        ours: See recorded.
    """
    known = recorded(cache, repo_id, commit, ours=ours)
    return [name for name, sha256 in found.items() if known.get(name, {sha256}) != {sha256}]


def repositories_at(cache: CacheDir, commit: str) -> set[str]:
    """The repositories of which a manifest of the cache has that commit."""
    return {_repository(manifest) for manifest in _at(cache, commit)}


def _at(cache: CacheDir, commit: str, *, ours: bool = False) -> Iterator[Manifest]:
    named = chain(cache.at_revision(commit, ours=ours), underway(cache))
    return (manifest for _, manifest in named if manifest.revision == commit)


def _repository(manifest: Manifest) -> str:
    """The repository of a manifest; of other sources what no repository is called."""
    return manifest.source.partition("@")[0]
