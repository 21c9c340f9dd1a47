"""Which files of a source are checkpoints, for the daemon as for a worker on its own.

A checkpoint is unpickled, so it is inspected before anybody gets it. What is kept beside it and
never unpickled is verified and handed out by its path, and cannot be loaded.
"""

from __future__ import annotations

from craftcache.errors import NotACheckpoint

__all__ = ["is_checkpoint", "check_checkpoint", "is_pickled"]

PLAIN_SUFFIXES = (".json", ".md", ".model", ".py", ".safetensors", ".txt", ".yaml", ".yml")
"""Suffixes of files that are never unpickled, so that nothing in them needs inspection."""


PICKLED_SUFFIXES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".th")
"""Suffixes of files that programs unpickle."""


def is_pickled(filename: str) -> bool:
    """Whether programs unpickle a file of that name.

    Of a whole repository these are inspected before they are published; the rest only if it is to
    be loaded as a checkpoint.
    """
    return filename.lower().endswith(PICKLED_SUFFIXES)


def is_checkpoint(filename: str) -> bool:
    """Whether a file of that name is taken for a checkpoint; without a known suffix it is."""
    return not filename.lower().endswith(PLAIN_SUFFIXES)


def check_checkpoint(filename: str, *, source: str) -> None:
    """Raise NotACheckpoint if a file of that name is not to be loaded."""
    if not is_checkpoint(filename):
        raise NotACheckpoint(
            f"{filename} is no checkpoint by its name",
            source=source,
            hint="Use resolve for its path, and read it from there",
        )
