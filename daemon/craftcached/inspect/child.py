"""The process that inspects one checkpoint.

It is a Python that has found no packages but ours, started with the arguments FILE RESULT
CPU_SECONDS PARENT: two descriptors, of the checkpoint and of an empty memory file, and its limit
and the process that it must not outlive. It writes what it found to the memory file: one byte for
its kind, then the index, or an error's problem document. The kind is written last, so a verdict is
there whole or not at all, however this process ends.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Final

from craftcache.checkpoint.index import MAX_BYTES, dump
from craftcache.checkpoint.reader import read_index
from craftcache.errors import CraftcacheError, NotACheckpoint

from .confine import confine, die_with_parent

__all__ = ["INDEX", "PROBLEM", "main"]

INDEX: Final = b"I"
PROBLEM: Final = b"P"


def main() -> None:
    """Inspect the file that the command line names."""
    file, result, cpu_seconds, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    confine(cpu_seconds=cpu_seconds, file_bytes=1 + MAX_BYTES)
    gc.disable()  # it only takes time: this process makes no garbage that anybody waits for
    try:
        kind, found = INDEX, _describe(file)
    except CraftcacheError as error:
        kind, found = PROBLEM, json.dumps(error.to_problem()).encode()
    with open(result, "wb", closefd=False) as output:
        output.write(bytes(1) + found)
    os.pwrite(result, kind, 0)


def _describe(file: int) -> bytes:
    """The index of a checkpoint, as ``craftcache.checkpoint.index.dump`` writes it."""
    try:
        found = dump(read_index(file))
    except MemoryError as error:
        raise NotACheckpoint("describing it takes more memory than inspection allows") from error
    if len(found) > MAX_BYTES:
        raise NotACheckpoint(f"its index is longer than {MAX_BYTES} bytes")
    return found
