"""What a user names, parsed once at the edge.

The convention is AudioCraft's loader's: an existing local file, an existing local directory, an
``https://`` URL, otherwise a Hugging Face Hub id. ``watch:NAME`` is ours and cannot be mistaken
for any of them. Local paths are the worker's own and never cross a socket: :func:`parse` knows
only what a daemon can serve, :func:`locate` looks at the file system first.

What a source is made of is a set of *files*. An export is the pair ``state_dict.bin`` (part
``lm``) and ``compression_state_dict.bin`` (part ``compression``).
"""

from __future__ import annotations

from .kinds import (
    FILENAMES,
    PARTS,
    HubSource,
    LocalDirectory,
    LocalFile,
    Part,
    RemoteSource,
    Source,
    UrlSource,
    WatchSource,
)
from .names import check_filename, check_watch_name, is_commit, shown_url, url_digest
from .parsing import locate, parse, wanted_files
from .selection import NO_SELECTION, Selection

__all__ = [
    "Part",
    "PARTS",
    "FILENAMES",
    "HubSource",
    "UrlSource",
    "WatchSource",
    "LocalFile",
    "LocalDirectory",
    "RemoteSource",
    "Source",
    "Selection",
    "NO_SELECTION",
    "parse",
    "locate",
    "wanted_files",
    "check_filename",
    "check_watch_name",
    "is_commit",
    "shown_url",
    "url_digest",
]
