"""Pickles that no pickler writes: the reader refuses them, or says what torch loads."""

from __future__ import annotations

import pickletools

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from craftcache.checkpoint import weights_only
from craftcache.checkpoint.index import dump, parse
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.reader.calls import KNOWN_GLOBALS
from craftcache.checkpoint.tensors import build
from craftcache.errors import CraftcacheError, NotACheckpoint, UnsafeCheckpoint
from tests.support.checkpoints import assert_same, memory_file
from tests.support.pickles import Op, archive

from .by_reader import CPU, by_reader, by_torch, without_torchs_warnings

pytestmark = without_torchs_warnings


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
