"""Files in the format of torch before 1.6: read as torch reads them, or refused."""

from __future__ import annotations

import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.errors import NotACheckpoint, UnsafeCheckpoint
from tests.support.checkpoints import assert_same, loaded, saved
from tests.support.pickles import Op

from .by_reader import by_reader, without_torchs_warnings

pytestmark = without_torchs_warnings


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_legacy_file_is_refused_or_still_inside_its_bounds(
    place: int, value: int
) -> None:
    content = bytearray(saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=False))
    content[place % len(content)] = value
    index, ours = by_reader(bytes(content))
    assert index is not None or type(ours) in (NotACheckpoint, UnsafeCheckpoint)


def legacy(pickled: bytes, storage: bytes, *keys: str) -> bytes:
    """A file in the format of torch before 1.6, with storages of the same four floats."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    pickles = [*(pickle.dumps(value, 2) for value in head), pickled, pickle.dumps(list(keys), 2)]
    return b"".join(pickles) + (struct.pack("<q", len(storage) // 4) + storage) * len(keys)


def legacy_storage(key: str = "0", count: int = 4, part: object = None) -> bytes:
    """A storage as the pickle of such a file asks for it."""
    pid = Op.value("storage") + Op.name("torch.FloatStorage")
    return b"(" + pid + b"".join(map(Op.value, (key, "cpu", count, part))) + b"tQ"


FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def test_a_legacy_storage_that_is_a_part_of_another_is_loaded_by_torch() -> None:
    tensor = Op.tensor(legacy_storage(part=("1", 2, 2)), shape=(2,))
    content = legacy(Op.whole(tensor), FLOATS, "0")
    index, ours = by_reader(content)
    assert index is not None, ours
    assert index.reason == "it holds a storage that is a part of another"
    assert_same(ours, loaded(content))


def whole_legacy(*storages: bytes) -> bytes:
    return Op.whole(b"(", *(Op.tensor(storage, shape=(4,)) for storage in storages), b"t")


LEGACY: dict[str, bytes] = {
    "a storage that is not in the file": legacy(whole_legacy(legacy_storage()), FLOATS),
    "a storage twice in the file": legacy(whole_legacy(legacy_storage()), FLOATS, "0", "0"),
    "a storage that nobody asks for": legacy(whole_legacy(legacy_storage()), FLOATS, "0", "1"),
    "a storage of another length": legacy(whole_legacy(legacy_storage(count=5)), FLOATS, "0"),
    "a storage of two lengths": legacy(
        whole_legacy(legacy_storage(), legacy_storage(count=5)), FLOATS, "0"
    ),
    "a storage larger than the file": legacy(
        whole_legacy(legacy_storage(count=2**60)), FLOATS, "0"
    ),
    "a storage of negative length": legacy(whole_legacy(legacy_storage(count=-4)), FLOATS, "0"),
    "a part that reaches outside": legacy(
        whole_legacy(legacy_storage(part=("1", 2, 4))), FLOATS, "0"
    ),
    "a part from before": legacy(whole_legacy(legacy_storage(part=("1", -1, 4))), FLOATS, "0"),
    "a storage in its head": pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    + pickle.dumps(1001, 2)
    + Op.whole(legacy_storage()),
    "keys that are none": legacy(Op.whole(Op.value(1)), FLOATS)[:-3] + Op.value(1) + b".",
    "no end": legacy(whole_legacy(legacy_storage()), FLOATS, "0")[:-1],
}


@pytest.mark.parametrize("name", LEGACY)
def test_hostile_legacy_files_are_refused(name: str) -> None:
    index, error = by_reader(LEGACY[name])
    assert index is None
    assert type(error) is NotACheckpoint


def test_the_legacy_files_are_refused_for_what_is_wrong_with_them() -> None:
    index, ours = by_reader(legacy(whole_legacy(legacy_storage()), FLOATS, "0"))
    assert index is not None, ours
    assert index.reason is None
    assert isinstance(ours, tuple)
    assert ours[0].tolist() == [1.0, 2.0, 3.0, 4.0]
