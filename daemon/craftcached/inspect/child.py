"""The process that inspects one checkpoint.

It was forked from a Python that has found no packages but ours and has read no file, see
``server``, and is confined before it reads this one. It writes what it found to a memory file: one
byte for its kind, then the index, or an error's problem document. The kind is written last, so a
verdict is there whole or not at all, however this process ends.
"""

from __future__ import annotations

import json
import os
from typing import Final, NoReturn

from craftcache.checkpoint.index import MAX_BYTES, dump
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.recognize import recognized
from craftcache.errors import CraftcacheError, NotACheckpoint

from .confine import confine

__all__ = ["INDEX", "PROBLEM", "inspect_file"]

INDEX: Final = b"I"
PROBLEM: Final = b"P"


def inspect_file(file: int, result: int, cpu_seconds: int) -> NoReturn:
    """Inspect a checkpoint, and end this process.

    Args:
        file: Descriptor of the checkpoint.
        result: Descriptor of an empty memory file.
        cpu_seconds: CPU time after which this process is ended.
    """
    confine(cpu_seconds=cpu_seconds, file_bytes=1 + MAX_BYTES)
    try:
        kind, found = INDEX, _describe(file)
    except CraftcacheError as error:
        kind, found = PROBLEM, json.dumps(error.to_problem()).encode()
    with open(result, "wb", closefd=False) as output:
        output.write(bytes(1) + found)
    os.pwrite(result, kind, 0)
    os._exit(0)  # taking down half a million objects one by one takes as long as a tenth of it all


def _describe(file: int) -> bytes:
    """The index of a checkpoint, as ``craftcache.checkpoint.index.dump`` writes it."""
    try:
        with recognized(file):
            index = read_index(file)
        found = dump(index)
    except MemoryError as error:
        raise NotACheckpoint("describing it takes more memory than inspection allows") from error
    if len(found) > MAX_BYTES:
        raise NotACheckpoint(f"its index is longer than {MAX_BYTES} bytes")
    return found
