"""What the reader and what torch make of the same bytes."""

from __future__ import annotations

import pytest
import torch

from craftcache.checkpoint import weights_only
from craftcache.checkpoint.index import Index, dump, parse
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.tensors import build
from craftcache.errors import CraftcacheError
from tests.support.checkpoints import loaded, memory_file

CPU = torch.device("cpu")

without_torchs_warnings = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support",  # torch's, on sight of one
    "ignore:Detected pickle protocol",
    "ignore:.*quantiz",
    "ignore:Sparse CSR tensor support is in beta",
    "ignore:TypedStorage",
)


def by_torch(content: bytes) -> object:
    """What torch's weights-only loader makes of a file, or the error that it means."""
    try:
        return loaded(content)
    except Exception as error:  # noqa: BLE001  garbage makes torch raise nearly anything
        return weights_only.translate(error, source=None)


def by_reader(content: bytes) -> tuple[Index | None, object]:
    """The index of a file, and what is built from it; or None and the error that there is."""
    with memory_file(content) as fd:
        try:
            index = parse(dump(read_index(fd)), file_size=len(content))
            return index, build(index, fd, device=CPU)
        except CraftcacheError as error:
            return None, error
