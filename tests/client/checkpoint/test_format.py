"""The format of an index: what is written is read, and nothing out of form or bounds is."""

from __future__ import annotations

import copy
import json
from math import inf, nan
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.checkpoint.index import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_TENSORS,
    Index,
    InvalidIndex,
    Storage,
    Tensor,
    assemble,
    dump,
    parse,
)
from craftcache.checkpoint.tensors import build
from tests.support.checkpoints import memory_file

FILE_SIZE = 4096

INDEX = Index(
    file_size=FILE_SIZE,
    format="zip",
    reason=None,
    storages=[Storage(64, 48), Storage(128, 24), Storage(192, 0)],
    tensors=[
        Tensor("float32", 0, [3, 4]),
        Tensor("float16", 1, [3, 4]),
        Tensor("float32", 0, [2, 2], [1, 4], 3, requires_grad=True, is_parameter=True),
        Tensor("int64", 2, [0, 7]),
    ],
    tree=["d", ["best_state", "xp.cfg"], [["o", ["a", "b", "c", "d"], 0, ["d", [], []]], "lr: 1"]],
)
DOCUMENT: dict[str, Any] = json.loads(dump(INDEX))


def encoded(document: object) -> bytes:
    return json.dumps(document).encode("ascii")


def changed(*path: Any, value: object) -> dict[str, Any]:
    """The document with one place in it changed."""
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return document


def test_what_is_dumped_is_parsed() -> None:
    assert parse(dump(INDEX), file_size=FILE_SIZE) == INDEX


def test_reading_keeps_to_this_version_and_ignores_unknown_keys() -> None:
    assert parse(encoded(DOCUMENT | {"new": [1]}), file_size=FILE_SIZE) == INDEX
    with pytest.raises(InvalidIndex, match="version 1"):
        parse(encoded(DOCUMENT | {"craftcache_index": 2}), file_size=FILE_SIZE)


def test_index_of_another_file_is_refused() -> None:
    with pytest.raises(InvalidIndex, match="of a file of 4096 bytes"):
        parse(dump(INDEX), file_size=FILE_SIZE + 1)


HOSTILE = {
    "format": changed("format", value="tar"),
    "reason beside tensors": changed("reason", value="sparse"),
    "reason of no string": changed("reason", value=0),
    "unknown dtype": changed("dtypes", 0, value="qint8"),
    "attribute of torch as dtype": changed("dtypes", 0, value="load"),
    "storage before the file": changed("storages", 0, value=-64),
    "storage beyond the file": changed("storages", 5, value=FILE_SIZE),
    "storage larger than memory": changed("storages", 5, value=2**70),
    "storages that overlap": changed("storages", 1, value=65),
    "storage of negative size": changed("storages", 1, value=-1),
    "storage of no integer": changed("storages", 0, value=64.0),
    "storage that is a boolean": changed("storages", 0, value=True),
    "storages in odd number": changed("storages", value=[64]),
    "misaligned storage": changed("storages", 0, value=66),
    "dtype out of range": changed("dtype", 0, value=3),
    "dtype before the first": changed("dtype", 0, value=-1),
    "storage out of range": changed("storage", 0, value=3),
    "storage number below 0": changed("storage", 0, value=-1),
    "larger than its storage": changed("shape", 0, value=[3, 5]),
    "smaller than its storage": changed("shape", 0, value=[3, 3]),
    "negative sizes": changed("shape", 0, value=[-3, -4]),
    "size that is a float": changed("shape", 0, value=[3.0, 4]),
    "shape that is none": changed("shape", 0, value=12),
    "too many dimensions": changed("shape", 0, value=[12] + [1] * 64),
    "absurd empty shape": changed("shape", 3, value=[0, 2**62, 2**62]),
    "columns of unequal length": changed("shape", value=[[3, 4]]),
    "view of no tensor": changed("views", 0, 0, value=4),
    "view with stride beyond": changed("views", 0, 1, value=[1, 9]),
    "view with negative stride": changed("views", 0, 1, value=[1, -1]),
    "view with stride of a float": changed("views", 0, 1, value=[1, 1.0]),
    "view with too few strides": changed("views", 0, 1, value=[1]),
    "view that overflows": changed("views", 0, 1, value=[2**63, 2**63]),
    "view from beyond": changed("views", 0, 2, value=12),
    "view from before": changed("views", 0, 2, value=-1),
    "view with unknown flags": changed("views", 0, 3, value=4),
    "view of wrong length": changed("views", 0, value=[2, [1, 4], 3]),
    "gradient of integers": changed("views", value=[[3, [7, 1], 0, 1]]),
    "tensors beyond the table": changed("tree", 2, 0, 2, value=1),
    "tensors before the table": changed("tree", 2, 0, 2, value=-1),
    "tensor beyond the table": changed("tree", 2, 1, value=["T", 4]),
    "tensor -1": changed("tree", 2, 1, value=["T", -1]),
    "tensor True": changed("tree", 2, 1, value=["T", True]),
    "unknown node": changed("tree", 2, 1, value=["x", 1]),
    "empty node": changed("tree", 2, 1, value=[]),
    "object for a node": changed("tree", 2, 1, value={"a": 1}),
    "key that cannot be one": changed("tree", 1, 0, value=["l", []]),
    "key that is there twice": changed("tree", 1, 0, value="xp.cfg"),
    "key too many": changed("tree", 1, value=["a", "b", "c"]),
    "attributes that are no dict": changed("tree", 2, 0, 3, value=["l", []]),
    "attributes that are no names": changed("tree", 2, 0, 3, value=["d", [1], [1]]),
    "unknown float": changed("tree", 2, 1, value=["f", "1.0"]),
    "missing part": {key: value for key, value in DOCUMENT.items() if key != "storages"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_indexes_are_refused(name: str) -> None:
    assert encoded(HOSTILE[name]) != encoded(DOCUMENT)
    with pytest.raises(InvalidIndex):
        parse(encoded(HOSTILE[name]), file_size=FILE_SIZE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        dump(INDEX)[:-1],
        dump(INDEX).replace(b'"lr: 1"', b"NaN"),
        dump(INDEX).replace(b'"lr: 1"', b'"\xc3\xa9"'),
        dump(INDEX).replace(b'"lr: 1"', b"9" * 10_000),
        dump(INDEX).replace(b'"lr: 1"', b"[" * 100_000 + b"]" * 100_000),
        dump(INDEX).decode().encode("utf-16"),
        b" " * (MAX_BYTES + 1),
    ],
    ids=range(12),
)
def test_what_is_no_json_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidIndex):
        parse(data, file_size=FILE_SIZE)


def test_limits_hold() -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH + 1):
        nested = ["l", [nested]]
    parse(encoded(changed("tree", value=nested[1][0])), file_size=FILE_SIZE)
    with pytest.raises(InvalidIndex, match="nested"):
        parse(encoded(changed("tree", value=["l", [nested]])), file_size=FILE_SIZE)
    many = changed("storages", value=[0, 0] * (MAX_TENSORS + 1))
    with pytest.raises(InvalidIndex, match="too many"):
        parse(encoded(many), file_size=FILE_SIZE)


def test_floats_that_json_lacks() -> None:
    tree = ["t", [["f", "inf"], ["f", "-inf"], ["f", "nan"]]]
    assert repr(assemble(tree, [])) == repr((inf, -inf, nan))


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of each leaf of a JSON document."""
    if isinstance(value, list):
        return [found for n, item in enumerate(value) for found in places(item, (*path, n))]
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in places(item, (*path, key))]
    return [path]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(places(DOCUMENT)),
            st.integers(-2, 70)
            | st.integers()
            | st.floats()
            | st.sampled_from([None, True, "", []]),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_index_that_is_accepted_stays_inside_its_file(
    changes: list[tuple[tuple[Any, ...], object]],
) -> None:
    document = copy.deepcopy(DOCUMENT)
    for path, value in changes:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
    with memory_file(bytes(FILE_SIZE)) as fd:
        try:
            index = parse(encoded(document), file_size=FILE_SIZE)
        except InvalidIndex:
            return
        if index.reason is None:
            assert all(0 <= start <= start + n <= FILE_SIZE for start, n in index.storages)
            build(index, fd, device=torch.device("cpu"))  # torch refuses to leave a mapped storage
