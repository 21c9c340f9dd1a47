"""The reader against torch: it says what torch.load returns, or refuses what torch refuses."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import _weights_only_unpickler as torch_unpickler

from craftcache.checkpoint.reader import ALLOWED_GLOBALS
from craftcache.checkpoint.reader.calls import KNOWN_GLOBALS
from craftcache.errors import CraftcacheError
from tests.support.checkpoints import assert_same, checkpoints, loaded, saved, tensors
from tests.support.pickles import Op, archive

from .by_reader import by_reader, by_torch, without_torchs_warnings

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = without_torchs_warnings

is_newest = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="the tables are those of torch 2.13"
)


def assert_agrees(content: bytes) -> None:
    """The reader and torch agree on a file that a pickler wrote."""
    _, ours = by_reader(content)
    theirs = by_torch(content)
    if isinstance(theirs, CraftcacheError):
        assert type(ours) is type(theirs), (ours, theirs)
    else:
        assert_same(ours, theirs)


# -- the names ---------------------------------------------------------------------------------


@is_newest
def test_the_names_are_those_of_torchs_weights_only_list_and_ours() -> None:
    theirs = torch_unpickler._get_allowed_globals()
    assert set(KNOWN_GLOBALS) == {*theirs, *ALLOWED_GLOBALS}


@is_newest
def test_dtypes_and_storages_are_torchs() -> None:
    from craftcache.checkpoint.reader.names import DTYPE_BYTES, STORAGE_DTYPES, TENSOR_CLASSES

    theirs = torch_unpickler._get_allowed_globals()
    dtypes = {name: it for name, it in theirs.items() if isinstance(it, torch.dtype)}
    assert {f"torch.{name}": size for name, size in DTYPE_BYTES.items()} == {
        name: dtype.itemsize for name, dtype in dtypes.items()
    }
    kinds = {
        name: str(kind.dtype).removeprefix("torch.")
        for name, kind in theirs.items()
        if isinstance(kind, torch.serialization.StorageType)
    }
    assert kinds | {"torch.storage.UntypedStorage": "uint8"} == STORAGE_DTYPES
    assert {name for name in theirs if name.endswith("Tensor")} == TENSOR_CLASSES


# -- what picklers write -----------------------------------------------------------------------


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoints(), st.integers(2, 5), st.booleans())
@example({"a": torch.ones(2)}, 3, False)
@example({"a": torch.ones(2)}, 4, False)
@example(OrderedDict(a=1), 5, True)
@example([], 4, True)
def test_protocols_are_read_or_refused_as_torch_does(
    checkpoint: object, protocol: int, is_legacy: bool
) -> None:
    content = saved(
        checkpoint, pickle_protocol=protocol, _use_new_zipfile_serialization=not is_legacy
    )
    assert_agrees(content)


def filled_defaultdict() -> defaultdict[str, list[int]]:
    return defaultdict(list, {"a": [1]})


ODD: list[Callable[[], object]] = [
    lambda: {1, 2},
    lambda: set(),
    lambda: b"bytes",
    lambda: bytearray(b"abc"),
    lambda: bytearray(),
    lambda: 1 + 2j,
    lambda: Counter("hello"),
    lambda: Counter(),
    lambda: torch.Size([2, 3]),
    lambda: torch.Size([]),
    lambda: torch.float16,
    lambda: torch.device("cuda:0"),
    lambda: torch.device("cpu"),
    lambda: torch.ones(2).untyped_storage(),
    lambda: torch.eye(3).to_sparse(),
    lambda: torch.eye(3).to_sparse_csr(),
    lambda: torch.nn.Parameter(torch.eye(3).to_sparse()),
    lambda: torch.quantize_per_tensor(torch.ones(2), 0.5, 3, torch.quint8),
    lambda: torch.quantize_per_channel(
        torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8
    ),
    lambda: torch.tensor([1j]).conj(),
    lambda: torch.ones(3, device="meta"),
    lambda: torch.nn.Buffer(torch.ones(2)),
    lambda: torch.ones(2, dtype=torch.uint16),
    lambda: torch.ones(2).to(torch.float8_e4m3fn),
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    lambda: OrderedDict,
    lambda: torch.per_tensor_affine,
]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("number", range(len(ODD)))
def test_odd_values_are_loaded_by_torch_and_what_is_beside_them_is_read(number: int) -> None:
    content = saved({"odd": ODD[number](), "sample_rate": 32000})
    theirs = by_torch(content)
    index, ours = by_reader(content)
    assert not isinstance(theirs, CraftcacheError)
    assert index is not None, ours
    assert index.value("sample_rate") == 32000
    assert str(ours) == str(theirs)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_parameters_with_attributes_and_metadata(data: st.DataObject) -> None:
    pool = [torch.arange(12.0), torch.arange(12.0).to(torch.complex64)]
    tensor = data.draw(tensors(pool))
    if data.draw(st.booleans()):
        vars(tensor)["scale"] = data.draw(st.integers() | st.text())
    if tensor.is_complex() and data.draw(st.booleans()):
        tensor = tensor.detach().conj()
    content = saved([tensor])
    _, ours = by_reader(content)
    assert isinstance(ours, list), ours
    theirs: Any = loaded(content)
    assert vars(ours[0]) == vars(theirs[0])
    assert ours[0].is_conj() == theirs[0].is_conj()
    assert type(ours[0]) is type(theirs[0])
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("make", [filled_defaultdict, lambda: defaultdict(int)])
def test_defaultdicts_are_allowed_and_have_no_index(make: Callable[[], object]) -> None:
    index, ours = by_reader(saved({"cache": make(), "n": 1}))
    assert index is not None
    assert index.reason == "it holds a collections.defaultdict"
    assert ours == {"cache": make(), "n": 1}


def test_text_with_half_a_character_is_not_made_whole() -> None:
    text = "\ud83d\ude00"  # two halves side by side, which JSON would join
    index, ours = by_reader(
        archive(Op.whole(b"X\x06\0\0\0" + text.encode("utf-8", "surrogatepass")))
    )
    assert index is not None
    assert index.reason
    assert ours == text
