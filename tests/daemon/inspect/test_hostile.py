"""Files made to hurt: each ends in a typed refusal, and the next file is none the worse for it."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.checkpoint.index import MAX_TENSORS, dump, parse
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.tensors import build
from craftcache.errors import CraftcacheError, NotACheckpoint, UnsafeCheckpoint
from craftcached.inspect import Inspector
from tests.support.checkpoints import memory_file, saved
from tests.support.pickles import Op, archive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GOOD = saved({"weight": torch.arange(100.0), "bias": torch.ones(3).half(), "version": "1"})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inspector() -> AsyncIterator[Inspector]:
    async with Inspector(cpu_seconds=20) as inspector:
        yield inspector


async def refusal(inspector: Inspector, path: Path, content: bytes) -> CraftcacheError:
    """The error that inspection ends in."""
    path.write_bytes(content)
    with pytest.raises(CraftcacheError) as caught:
        await inspector.inspect(path, source="org/name")
    assert caught.value.source == "org/name"
    return caught.value


@pytest.mark.asyncio(loop_scope="module")
async def test_these_pieces_make_a_checkpoint(inspector: Inspector, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(archive(Op.whole(Op.tensor())))
    index = parse(await inspector.inspect(path, source="s"), file_size=path.stat().st_size)
    assert [tensor.shape for tensor in index.tensors] == [[16]]


GADGETS = [
    "builtins.__import__",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "builtins.open",
    "codecs.open",
    "collections.namedtuple",
    "ctypes.CDLL",
    "functools.partial",
    "importlib.import_module",
    "nt.system",
    "numpy._core.multiarray._reconstruct",
    "omegaconf.omegaconf.OmegaConf",
    "operator.attrgetter",
    "os.system",
    "pathlib.PosixPath",
    "pickle.loads",
    "posix.system",
    "runpy.run_path",
    "shutil.rmtree",
    "socket.create_connection",
    "subprocess.Popen",
    "sys.setprofile",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "torch.ops.load_library",
    "torch.storage._load_from_bytes",
    "types.FunctionType",
    "webbrowser.open",
]


@pytest.mark.parametrize("name", GADGETS)
@pytest.mark.asyncio(loop_scope="module")
async def test_gadgets_are_refused_by_name(inspector: Inspector, tmp_path: Path, name: str) -> None:
    content = archive(Op.whole(Op.call(name, Op.value("touch /tmp/ran"))))
    error = await refusal(inspector, tmp_path / "file", content)
    assert type(error) is UnsafeCheckpoint
    assert name in error.message


@pytest.mark.asyncio(loop_scope="module")
async def test_python_2_s_names_are_known(inspector: Inspector, tmp_path: Path) -> None:
    content = archive(Op.whole(Op.call("__builtin__.eval", Op.value("1"))))
    error = await refusal(inspector, tmp_path / "file", content)
    assert type(error) is UnsafeCheckpoint
    assert "builtins.eval" in error.message


@pytest.mark.asyncio(loop_scope="module")
async def test_legacy_files_are_under_the_same_rules(inspector: Inspector, tmp_path: Path) -> None:
    content = saved([1], _use_new_zipfile_serialization=False)
    evil = Op.whole(Op.call("posix.system", Op.value("touch /tmp/ran")))
    error = await refusal(inspector, tmp_path / "file", content.replace(pickle.dumps([1], 2), evil))
    assert type(error) is UnsafeCheckpoint
    assert "posix.system" in error.message


def many_tensors(count: int) -> bytes:
    """A list of tensors of 16 bytes of pickle each."""
    shared = [
        Op.name("torch._utils._rebuild_tensor_v2"),
        Op.storage(),
        Op.value((16,)),
        Op.value((1,)),
        Op.call("collections.OrderedDict"),
    ]
    memo = [piece + b"q" + bytes([10 + n]) for n, piece in enumerate(shared)]
    one = b"h\x0a(h\x0bK\x00h\x0ch\x0d\x89h\x0etR"
    return Op.whole(b"](", *memo, one * count, b"e")


PICKLES: dict[str, bytes] = {
    "empty": b"",
    "no end": Op.START,
    "protocol 4": pickle.dumps({"a": Op}, 4).replace(b"Op", b"os"),
    "INST": Op.whole(b"(S'true'\niposix\nsystem\n"),
    "EXT": Op.whole(b"\x82\x01"),
    "reduce of a tensor": Op.whole(Op.tensor(), b")R"),
    "reduce of a number": Op.whole(Op.value(1), b")R"),
    "state of a number": Op.whole(Op.value(1.5), Op.value({}), b"b"),
    "state of a dict": Op.whole(b"}", Op.value({"__class__": 1}), b"b"),
    "empty stack": Op.whole(b"0", b"R"),
    "memo of nothing": Op.whole(b"h\x07"),
    "persistent module": Op.whole(b"(", Op.value("module"), b"tQ"),
    "persistent path": Op.whole(Op.value("/etc/passwd"), b"Q"),
    "storage outside the archive": Op.whole(Op.tensor(Op.storage("../../etc/passwd"))),
    "storage that is missing": Op.whole(Op.tensor(Op.storage("1"))),
    "storage that is the pickle": Op.whole(Op.tensor(Op.storage("../data.pkl"))),
    "storage longer than its record": Op.whole(Op.tensor(Op.storage(count=17))),
    "storage larger than memory": Op.whole(Op.tensor(Op.storage(count=2**60))),
    "storage larger than 64 bits": Op.whole(Op.tensor(Op.storage(count=2**70))),
    "storage of negative size": Op.whole(Op.tensor(Op.storage(count=-1))),
    "storage of a float": Op.whole(Op.tensor(Op.storage(count=1.5))),
    "storage of two sizes": Op.whole(b"(", Op.tensor(), Op.tensor(Op.storage(count=8)), b"t"),
    "storage of two dtypes": Op.whole(
        b"(", Op.tensor(), Op.tensor(Op.storage(kind="IntStorage")), b"t"
    ),
    "storage by number": Op.whole(Op.tensor(Op.storage(key=0))),
    "storage of no dtype": Op.whole(Op.tensor(Op.storage(kind="TypedStorage"))),
    "tensor beyond its storage": Op.whole(Op.tensor(shape=(17,))),
    "tensor from beyond": Op.whole(Op.tensor(offset=17)),
    "tensor from before": Op.whole(Op.tensor(offset=-1)),
    "absurd shape": Op.whole(Op.tensor(shape=(2**40, 2**40), stride=(1, 1))),
    "absurd empty shape": Op.whole(Op.tensor(shape=(0, 2**62, 2**62), stride=(1, 1, 1))),
    "absurd stride": Op.whole(Op.tensor(stride=(2**62,))),
    "negative stride": Op.whole(Op.tensor(stride=(-1,))),
    "negative size": Op.whole(Op.tensor(shape=(-16,))),
    "million dimensions": Op.whole(Op.tensor(shape=(1,) * 10**6, stride=(1,) * 10**6)),
    "terabyte of bytes": Op.whole(Op.call("builtins.bytearray", Op.value(10**12))),
    "terabyte of floats": Op.whole(Op.call("torch.FloatTensor", Op.value(10**12))),
    "gigabyte of floats": Op.whole(Op.call("torch.FloatTensor", Op.value(2**28))),
    "one tensor too many": many_tensors(MAX_TENSORS + 1),
    "pickle of 40 MB": Op.whole(Op.value("a" * 40_000_000)),
    "string that is not there": Op.whole(b"X\xff\xff\xff\xffabc"),
    "not pickled text": b"hello",
    "an archive": archive(Op.whole(Op.tensor())),
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.asyncio(loop_scope="module")
async def test_hostile_pickles_are_refused(inspector: Inspector, tmp_path: Path, name: str) -> None:
    error = await refusal(inspector, tmp_path / "file", archive(PICKLES[name]))
    assert type(error) in (NotACheckpoint, UnsafeCheckpoint)


@pytest.mark.parametrize(
    "pickled",
    [
        Op.whole(b"]" * 10**6, b"a" * (10**6 - 1)),
        Op.whole(b")", b"\x85" * 10**6),
        Op.whole(Op.value("ha"), b"q\x00\x85", b"q\x00h\x00\x86" * 64),
    ],
    ids=["lists in lists", "tuples in tuples", "billion laughs"],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_absurd_nests_of_plain_values_have_no_index(
    inspector: Inspector, tmp_path: Path, pickled: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(archive(pickled))
    index = parse(await inspector.inspect(path, source="s"), file_size=path.stat().st_size)
    assert index.reason


LOCAL, ENTRY, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
PLAIN = archive(Op.whole(Op.tensor()))


def patched(content: bytes, mark: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    """The archive with bytes overwritten at an offset behind one of the occurrences of a mark."""
    at = -1
    for _ in range(which + 1):
        at = content.index(mark, at + 1)
    return content[: at + offset] + value + content[at + offset + len(value) :]


def deflated(pickled: bytes, storage: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", storage)
    return buffer.getvalue()


def twice(name: str) -> bytes:
    """An archive with two records whose names torch does not tell apart."""
    buffer = io.BytesIO(archive(Op.whole(Op.tensor())))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(name, Op.whole(Op.call("posix.system", Op.value("true"))))
    return buffer.getvalue()


def repeated_entry() -> bytes:
    """An archive whose directory lists its first record twice."""
    start, second, end = PLAIN.index(ENTRY), PLAIN.index(ENTRY, PLAIN.index(ENTRY) + 1), len(PLAIN)
    counts = struct.pack("<2HL", 4, 4, end - 22 - start + second - start)
    return patched(PLAIN[: end - 22] + PLAIN[start:second] + PLAIN[end - 22 :], END, 8, counts)


NINES = b"\xff\xff\xff\xff"

ARCHIVES: dict[str, tuple[str, bytes]] = {
    "nothing": ("it is empty", b""),
    "only its mark": ("a truncated zip archive", LOCAL),
    "no directory": ("a truncated zip archive", PLAIN[: PLAIN.index(ENTRY)]),
    "something in front": ("has something before it", b"#!/bin/sh\n" + PLAIN),
    "another archive in front": (
        "its zip directory is malformed",
        archive(Op.whole(Op.value(1))) + PLAIN,
    ),
    "something behind": ("something follows", PLAIN + b"x"),
    "comment": ("something follows", patched(PLAIN, END, 20, b"\x01\x00") + b"x"),
    "directory outside": (
        "directory reaches outside",
        patched(PLAIN, END, 16, b"\xf0\xff\xff\x7f"),
    ),
    "directory too long": (
        "directory reaches outside",
        patched(PLAIN, END, 12, b"\xf0\xff\xff\x7f"),
    ),
    "more entries than there are": (
        "its zip directory is truncated",
        patched(PLAIN, END, 8, b"\xf0\xff\xf0\xff"),
    ),
    "fewer entries here": ("split archive", patched(PLAIN, END, 8, b"\x01\x00")),
    "another disk": ("split archive", patched(PLAIN, END, 4, b"\x01\x00")),
    "zip64 without it": ("zip64 directory", patched(PLAIN, END, 16, NINES)),
    "encrypted record": ("encrypted or compressed", patched(PLAIN, ENTRY, 8, b"\x01\x00")),
    "unknown compression": ("encrypted or compressed", patched(PLAIN, ENTRY, 10, b"\x0c\x00")),
    "stored in another size": (
        "a record that is stored in another size than its own",
        patched(PLAIN, ENTRY, 24, b"\xff\x00\x00\x00", which=0),
    ),
    "zip64 sizes without them": (
        "a zip64 record without its sizes",
        patched(PLAIN, ENTRY, 20, NINES + NINES, which=0),
    ),
    "header elsewhere": ("header differs", patched(PLAIN, ENTRY, 42, b"\x01\x00\x00\x00")),
    "header outside": ("it is truncated", patched(PLAIN, ENTRY, 42, b"\xf0\xff\xff\x7f")),
    "two records in one place": ("record data/0 reaches into the next one", repeated_entry()),
    "other name in the header": (
        "header differs",
        PLAIN.replace(b"archive/data/0", b"archive/data/1", 1),
    ),
    "overlapping records": (
        "record data.pkl reaches into the next one",
        patched(
            patched(PLAIN, ENTRY, 20, struct.pack("<2L", 200, 200), which=1),
            LOCAL,
            18,
            struct.pack("<2L", 200, 200),
            which=1,
        ),
    ),
    "name that is no text": (
        "a record whose name is no text",
        PLAIN.replace(b"archive/version", b"archive/\xff\xff\xffsion"),
    ),
    "records in two folders": (
        "records outside the one folder of its archive",
        PLAIN.replace(b"archive/version", b"brchive/version"),
    ),
    "record in no folder": (
        "records outside the one folder of its archive",
        PLAIN.replace(b"archive/version", b"archive_version"),
    ),
    "one name twice": ("its archive has two records of one name", twice("archive/data.PKL")),
    "no pickle": ("it has no data.pkl", PLAIN.replace(b"data.pkl", b"data.pkx")),
    "unknown byte order": (
        "its byte order is neither little nor big",
        archive(Op.whole(Op.tensor()), byteorder=b"middle"),
    ),
    "TorchScript": (
        "it is a TorchScript archive, which holds code",
        archive(Op.whole(Op.tensor()), **{"constants.pkl": Op.whole(Op.value(()))}),
    ),
    "storage that unpacks to 1000 times its size": (
        "it unpacks to more than 16 times its own size",
        deflated(Op.whole(Op.tensor()), bytes(10**7)),
    ),
    "pickle that unpacks to 1000 times its size": (
        "it unpacks to more than 16 times its own size",
        deflated(Op.whole(Op.value("a" * 10**7)), b""),
    ),
    "pickle that unpacks to more than it says": (
        "its data.pkl is not as long as it says",
        patched(deflated(Op.whole(Op.value("a" * 1000)), b""), ENTRY, 24, struct.pack("<L", 100)),
    ),
    "truncated legacy file": (
        "is not whole in the file",
        saved([torch.ones(9)], _use_new_zipfile_serialization=False)[:-1],
    ),
    "legacy file of another protocol": (
        "its version of the legacy format is unknown",
        pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1, 2),
    ),
    "legacy file of another magic": ("begins like no checkpoint", pickle.dumps(1, 2)),
    "tar": ("in no format of torch.save's", b"storages".ljust(100, b"\0") + bytes(412)),
    "text": ("an HTML page", b"<!DOCTYPE html>"),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.asyncio(loop_scope="module")
async def test_hostile_archives_are_refused(
    inspector: Inspector, tmp_path: Path, name: str
) -> None:
    words, content = ARCHIVES[name]
    error = await refusal(inspector, tmp_path / "file", content)
    assert type(error) is (UnsafeCheckpoint if name == "TorchScript" else NotACheckpoint)
    assert words in error.message


@pytest.mark.asyncio(loop_scope="module")
async def test_an_archive_of_a_million_records_is_refused_unread(
    inspector: Inspector, tmp_path: Path
) -> None:
    count, length = 10**6, 50 * 10**6
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, 4)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4 + length, 1)
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(LOCAL)
        file.seek(length, os.SEEK_CUR)
        file.write(end + locator + struct.pack("<4s4H2LH", END, 0, 0, 65535, 65535, 0, 0, 0))
    with pytest.raises(NotACheckpoint, match="1000000 records"):
        await inspector.inspect(path, source="s")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's, of a damaged number
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(GOOD)),
)
def test_damaged_files_are_refused_or_still_inside_their_bounds(
    damage: list[tuple[int, int]], length: int
) -> None:
    content = bytearray(GOOD)
    for place, value in damage:
        content[place] = value
    with memory_file(bytes(content[:length] if length % 4 == 0 else content)) as fd:
        try:
            index = parse(dump(read_index(fd)), file_size=os.fstat(fd).st_size)
        except (NotACheckpoint, UnsafeCheckpoint):
            return
        build(index, fd, device=torch.device("cpu"))
