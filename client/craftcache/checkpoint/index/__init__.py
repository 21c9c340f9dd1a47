"""The index of a checkpoint: its objects and where its tensors are, read without unpickling.

The daemon writes an index once for each blob, from a confined process; workers map the blob and
build the tensors from the index. An index is one JSON document in ASCII, compact, of version 1::

    {"craftcache_index": 1,
     "file_size": 843325,             bytes of the file that it describes
     "format": "zip",                 torch.save's container: "zip" or "legacy" (before torch 1.6)
     "reason": null,                  or why the file must be loaded by torch (see below)
     "dtypes": ["float16"],           names in the module torch
     "storages": [9600, 2048, ...],   offset and size in bytes of each storage, alternating, in
                                      the order of the file, none overlapping another; in the
                                      format "legacy" they need not be aligned for their tensors
     "dtype": [0, 0, ...],            of each tensor: its dtype and its storage by number, and its
     "storage": [0, 1, ...],          shape; it is contiguous and fills its storage, unless
     "shape": [[32, 32], ...],
     "views": [[7, [1, 4], 2, 1]],    a view of the same number gives the stride and offset of its
                                      elements, and flags: 1 requires_grad, 2 torch.nn.Parameter
     "tree": node}

A node is null, a boolean, an integer, a finite float or a string, which stand for themselves, or
an array that begins with its kind::

    ["d", keys, values]               dict; keys is an array of nodes
    ["o", keys, values, attributes]   OrderedDict; attributes is the node of its ``__dict__``
    ["l", values]                     list
    ["t", values]                     tuple
    ["T", n]                          tensor n; two nodes with one number are one object
    ["f", "nan"]                      a float that JSON lacks: "nan", "inf" or "-inf"

``values`` is an array of nodes or, where all of them are tensors numbered in a row, the first of
these numbers: a state dict of 600 tensors is its keys and one integer.

With a ``reason`` the file holds something that an index cannot say exactly (an OmegaConf object,
a sparse tensor, compressed records ...). Then there are no storages and no tensors, the tree is a
dict of the plain values at the top of the checkpoint, and the checkpoint itself is loaded by
torch's weights-only loader.

Readers ignore unknown keys of the document and refuse another version. They trust nothing: an
Index that ``parse`` returned describes only places inside the file, and every number in its tree
is that of a tensor that it lists.
"""

from __future__ import annotations

from .document import dump, parse
from .form import (
    ITEM_BYTES,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_TENSORS,
    VERSION,
    Index,
    InvalidIndex,
    Node,
    Storage,
    Tensor,
    contiguous_stride,
)
from .tree import assemble

__all__ = [
    "Index",
    "InvalidIndex",
    "ITEM_BYTES",
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_DIMENSIONS",
    "MAX_ELEMENTS",
    "MAX_TENSORS",
    "Node",
    "Storage",
    "Tensor",
    "VERSION",
    "assemble",
    "contiguous_stride",
    "dump",
    "parse",
]
