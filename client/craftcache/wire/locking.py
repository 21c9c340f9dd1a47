"""Locked revisions in messages, over HTTP, in the queue and in lock files."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from craftcache.locked import LockedRevision, LockEntry
from craftcache.sources import check_filename

from .fields import MAX_FILENAME

if TYPE_CHECKING:
    from .fields import Fields

__all__ = ["lock_fields", "parse_lock"]

MAX_LOCKED_FILES = 512
"""Files of one source in a lock; as many as one selection may mean."""


def lock_fields(lock: LockedRevision) -> dict[str, Any]:
    """A locked revision as a JSON object."""
    return asdict(lock) | {"files": [asdict(file) for file in lock.files]}


def parse_lock(fields: Fields) -> LockedRevision:
    """The locked revision with these keys: its commit and its names of files become paths.

    Raises:
        InvalidSource: A file's name leads out of its source.
    """
    revision = fields.commit("revision")
    files = tuple(map(_parse_file, fields.children("files", MAX_LOCKED_FILES)))
    if not files or len({file.filename for file in files}) != len(files):
        raise fields.refusal("'files' lists no file, or one twice")
    return LockedRevision(revision, files, fields.optional_flag("needed_only"))


def _parse_file(fields: Fields) -> LockEntry:
    etag = None if fields.is_null("etag") else fields.hub_etag("etag")
    return LockEntry(
        check_filename(fields.text("filename", MAX_FILENAME), source="lock"),
        fields.sha256("sha256"),
        fields.integer("size"),
        etag,
    )
