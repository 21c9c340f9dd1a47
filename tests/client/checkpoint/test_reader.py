"""The reader against torch: it says what torch.load returns, or refuses what torch refuses."""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections import Counter, OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import _weights_only_unpickler as torch_unpickler

from craftcache.checkpoint import weights_only
from craftcache.checkpoint.index import Index, dump, parse
from craftcache.checkpoint.reader import ALLOWED_GLOBALS, read_index
from craftcache.checkpoint.reader.calls import KNOWN_GLOBALS
from craftcache.checkpoint.tensors import build
from craftcache.errors import CraftcacheError, NotACheckpoint, UnsafeCheckpoint
from tests.support.checkpoints import assert_same, checkpoints, loaded, memory_file, saved, tensors
from tests.support.pickles import Op, archive

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support",  # torch's, on sight of one
    "ignore:Detected pickle protocol",
    "ignore:.*quantiz",
    "ignore:Sparse CSR tensor support is in beta",
    "ignore:TypedStorage",
)

is_newest = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="the tables are those of torch 2.13"
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


# -- what no pickler writes --------------------------------------------------------------------


def steps() -> list[bytes]:
    """Pieces of pickles: opcodes with what follows them, as a fuzzer may string them together."""
    pieces = [Op.value(value) for value in (None, True, 0, 1, -1, 2**40, 1.5, "a", "storage")]
    pieces += [bytes([code]) for code in b"()t]}aesubRNQ\x81\x85\x86\x87\x88\x89\x8f"]
    pieces += [b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"r\x00\0\0\0", b"U\x01a", b"K\x02"]
    pieces += [Op.tensor(), Op.storage(), Op.value((2,)), Op.value({"a": 1}), Op.value([1])]
    pieces += [Op.name(name) for name in KNOWN_GLOBALS if "bytearray" not in name]
    return pieces


SMALL = st.lists(st.sampled_from(steps()), min_size=1, max_size=25)


@pytest.mark.filterwarnings("ignore")  # whatever torch says of such files
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SMALL)
@example(
    [Op.name("torch.FloatTensor"), b")R", b"(", Op.storage(), b"K\0", b"K\2\x85", b"K\1\x85tb"]
)
def test_what_is_indexed_is_what_torch_loads_whatever_the_opcodes(pieces: list[bytes]) -> None:
    content = archive(Op.whole(*pieces))
    with memory_file(content) as fd:
        try:
            index = parse(dump(read_index(fd)), file_size=len(content))
        except (NotACheckpoint, UnsafeCheckpoint):
            return
        if index.reason is None:
            theirs = weights_only.load(fd, map_location=CPU)  # with our own allow-list
            assert_same(build(index, fd, device=CPU), theirs)


UNKNOWN = sorted(
    (opcode.name, opcode.code)
    for opcode in pickletools.opcodes
    if opcode.code
    not in set("()*.]}aesubcRNQXUGJKMhjqrt\x80\x81\x85\x86\x87\x88\x89\x8a\x8f") - {"*"}
)


@pytest.mark.parametrize(("name", "code"), UNKNOWN)
def test_opcodes_that_torch_does_not_read_are_refused_by_name(name: str, code: str) -> None:
    content = archive(Op.whole(b"(", Op.value("os"), Op.value("system"), code.encode("latin-1")))
    assert isinstance(by_torch(content), NotACheckpoint)
    _, error = by_reader(content)
    assert type(error) is NotACheckpoint
    assert f"the opcode {name}," in error.message


@pytest.mark.parametrize("code", range(256))
def test_every_byte_is_an_opcode_or_a_refusal(code: int) -> None:
    for before in (b"", b"(", Op.tensor() + Op.value({"a": 1}), Op.name("torch.Size") + b")"):
        _, found = by_reader(archive(Op.whole(before, bytes([code]), bytes(8))))
        assert not isinstance(found, CraftcacheError) or type(found) in (
            NotACheckpoint,
            UnsafeCheckpoint,
        )


@pytest.mark.parametrize(
    ("module", "name", "known"),
    [
        ("torch", "_utils._rebuild_tensor_v2.__globals__", False),
        ("torch.nn", "Parameter", False),
        ("torch.nn.modules.module", "Module", False),
        ("collections.abc", "OrderedDict", False),
        ("builtins", "set.__class__", False),
        ("__builtin__", "set", True),
        ("torch._Utils", "_rebuild_tensor_v2", False),
        ("copy_reg", "_reconstructor", False),
        ("numpy", "dtype", False),
        ("torch.storage", "_load_from_bytes", False),
        ("exceptions", "OSError", False),
        ("torch", "_utils._rebuild_tensor_v2", True),  # the same name, to torch as well
    ],
)
def test_names_count_as_a_whole(module: str, name: str, known: bool) -> None:
    content = archive(Op.whole(f"c{module}\n{name}\n".encode()))
    index, error = by_reader(content)
    assert (index is not None) == known
    assert isinstance(by_torch(content), UnsafeCheckpoint) != known
    assert known or type(error) is UnsafeCheckpoint


SHARED = Op.value("a" * 1_000_000) + b"q\x01"
STATE = Op.value({str(number): 0 for number in range(50_000)}) + b"q\x01"

HOSTILE: dict[str, bytes] = {
    "memo of a number that was never kept": Op.whole(b"j\xff\xff\xff\xff"),
    "memo far away": Op.whole(b"Nr\xff\xff\xff\xffj\xff\xff\xff\x7f"),
    "a letter count again and again": Op.whole(
        SHARED, Op.name("collections.Counter"), b"q\x02](", b"h\x02h\x01\x85R" * 1000, b"e"
    ),
    "bytes again and again": Op.whole(
        SHARED, Op.name("_codecs.encode"), b"q\x02](", b"h\x02h\x01\x85R" * 1000, b"e"
    ),
    "a set again and again": Op.whole(
        Op.value([0] * 100_000) + b"q\x01",
        Op.name("builtins.set"),
        b"q\x02](",
        b"h\x02h\x01\x85R" * 2000,
        b"e",
    ),
    "a state again and again": Op.whole(
        STATE, Op.call("collections.OrderedDict"), b"h\x01b" * 100_000
    ),
    "keys that collide": Op.whole(
        b"}(", b"".join(Op.value(n * (2**61 - 1)) + b"N" for n in range(1, 20_000)), b"u"
    ),
    "a key that takes long to hash": Op.whole(
        Op.value("ha"), b"q\x00\x85", b"q\x00h\x00\x86" * 64, b"q\x01}h\x01Ns"
    ),
    "a key of many values": Op.whole(b"}(", b"N" * 2000, b"tNs"),
    "a list as a key": Op.whole(b"}]Ns"),
    "a dict as a key": Op.whole(b"}}Ns"),
    "a tuple with a list as a key": Op.whole(b"}(]tNs"),
    "an OrderedDict as a key": Op.whole(b"}", Op.call("collections.OrderedDict"), b"Ns"),
    "a state of a description": Op.whole(Op.tensor(), Op.value({"storage": 1}), b"b"),
    "a state of a function": Op.whole(
        Op.name("torch._utils._rebuild_tensor_v2"), Op.value({"call": 1}), b"b"
    ),
    "a state of a storage": Op.whole(Op.storage(), Op.value({"nbytes": 1}), b"b"),
    "attributes that are no names": Op.whole(
        Op.call("collections.OrderedDict"), Op.value({1: 2}), b"b"
    ),
    "an instance of a function": Op.whole(Op.name("torch._utils._rebuild_tensor_v2"), b")\x81"),
    "an instance of a number": Op.whole(Op.value(1), b")\x81"),
    "a call of a dtype": Op.whole(Op.call("torch.float32")),
    "a call of a storage": Op.whole(Op.call("torch.storage.UntypedStorage", Op.value(10**12))),
    "a call of int": Op.whole(Op.call("builtins.int", Op.value("9" * 4000))),
    "a call of list": Op.whole(Op.call("builtins.list", Op.value("abc"))),
    "a configuration made by call": Op.whole(
        Op.call("omegaconf.dictconfig.DictConfig", Op.value({}))
    ),
    "items of a number": Op.whole(Op.value(1), Op.value("a"), Op.value(2), b"s"),
    "items of a tensor": Op.whole(Op.tensor(), Op.value("a"), Op.value(2), b"s"),
    "an item without its value": Op.whole(b"}(", Op.value("a"), b"u"),
    "appended to a tuple": Op.whole(b")Na"),
    "quantized terabyte": Op.whole(
        Op.call(
            "torch._utils._rebuild_qtensor",
            *(Op.storage(kind="QInt8Storage", count=64), Op.value(0)),
            *(Op.value((2**40,)), Op.value((0,)), Op.value((1,)), Op.value(False), Op.value(None)),
        )
    ),
    "terabyte for another device": Op.whole(
        Op.call(
            "torch._utils._rebuild_device_tensor_from_cpu_tensor",
            *(Op.tensor(shape=(2**40,), stride=(0,)), Op.name("torch.float64")),
            *(Op.value("cpu"), Op.value(False)),
        )
    ),
    "encoding that computes": Op.whole(
        Op.call("_codecs.encode", Op.value("a" * 100), Op.value("idna"))
    ),
    "steps without end": Op.whole(b"N", b"q\x00" * 9_000_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name: str) -> None:
    with memory_file(archive(HOSTILE[name])) as fd, pytest.raises(CraftcacheError) as caught:
        read_index(fd)
    assert type(caught.value) in (NotACheckpoint, UnsafeCheckpoint)


def test_a_name_twice_is_one_storage_and_memory_that_nobody_wrote_is_refused() -> None:
    index, ours = by_reader(archive(Op.whole(b"(", Op.tensor(), Op.tensor(), b"t")))
    assert index is not None
    assert len(index.storages) == 1
    assert isinstance(ours, tuple)
    for name in ("torch.FloatTensor", "torch.Tensor", "torch.cuda.HalfTensor"):
        _, error = by_reader(archive(Op.whole(Op.call(name, Op.value(16)))))
        assert type(error) is NotACheckpoint
        assert "nothing was written" in error.message


def test_a_cycle_through_the_memo_has_no_index() -> None:
    index, ours = by_reader(archive(Op.whole(b"]q\x00h\x00a")))
    assert index is not None
    assert index.reason == "one container is in two places"
    assert isinstance(ours, list)
    assert ours[0] is ours


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
