"""Reading a checkpoint without torch: what it holds, or why that cannot be said or loaded.

    archive         the zip container, read strictly
    legacy          the container of torch before 1.6
    unpickler       the interpreter of the pickle inside, which makes descriptions
    keys            keys of dicts, before they are hashed
    names           what a pickle may name: torch's weights-only list of 2.13, and ours
    calls           what calling one of these would return, described
    tensor_calls    the same for what rebuilds tensors
    descriptions    what stands in the place of torch's objects
    describe        from descriptions to an index
    reading         all of it together: ``read_index``

Nothing here imports torch or runs anything that a file asks for, and what a file can make it do is
bounded in time and memory. The daemon reads in a confined process all the same. It is pure Python,
and changes nothing of the process that it runs in.
"""

from __future__ import annotations

from .names import ALLOWED_GLOBALS
from .reading import ArchivePickle, read_index, read_pickle

__all__ = ["ALLOWED_GLOBALS", "ArchivePickle", "read_index", "read_pickle"]
