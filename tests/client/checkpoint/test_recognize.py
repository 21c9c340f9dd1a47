"""What stands in a checkpoint's place is told by what it is, with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import wave
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.checkpoint import own_loader, weights_only
from craftcache.checkpoint.reader import read_index
from craftcache.checkpoint.recognize import recognize, recognize_damage, recognized
from craftcache.client import Client
from craftcache.errors import NotACheckpoint
from craftcached.inspect import Inspector
from tests.support.checkpoints import memory_file, saved
from tests.support.pickles import archive

if TYPE_CHECKING:
    from pathlib import Path

TORCHS_ADVICE = (
    *("miniz", "PytorchStreamReader", "Check the documentation", "https://"),
    *("Please file an issue", "\x1b"),
)

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 841956352\n".format("a" * 64)
WHOLE = saved({"best_state": {"w": torch.arange(1000.0)}})
LEGACY = saved({"w": torch.arange(1000.0)}, _use_new_zipfile_serialization=False)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        member = tarfile.TarInfo("state_dict.bin")
        member.size = len(WHOLE)
        file.addfile(member, io.BytesIO(WHOLE))
    return buffer.getvalue()


def waved() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(32000)
        file.writeframes(bytes(100))
    return buffer.getvalue()


def array(save: str) -> bytes:
    buffer = io.BytesIO()
    getattr(np, save)(buffer, np.ones(3))
    return buffer.getvalue()


TENSORS = safetensors.torch.save({"w": torch.ones(100)})

NO_CHECKPOINTS: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "empty", "Download"),
    "lfs": (LFS.encode(), "git-lfs pointer to a file of 841956352 bytes", "git lfs pull"),
    "lfs, Windows": (LFS.replace("\n", "\r\n").encode(), "git-lfs pointer", "git lfs pull"),
    "lfs, old": (LFS.replace("git-lfs.github", "hawser.github").encode(), "git-lfs", "lfs pull"),
    "lfs, cut": (LFS[:60].encode(), "git-lfs pointer, not", "git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s841956352--aa.bin\n", "git-annex", "git annex get"),
    "annex, link": (b"../.git/annex/objects/x/y/SHA256E-s8--a/SHA256E-s8--a", "annex", "annex get"),
    "dvc": (b"outs:\n- md5: " + b"a" * 32 + b"\n  size: 3\n  path: state_dict.bin\n", "DVC", "dvc"),
    "xet": (b"# xet version 0\nfilesize = 9\nhash = 'aa'\n", "a git-xet pointer", "Download"),
    "a link's text": (b"../../blobs/" + b"a" * 64, "the text of a link", "cp -a"),
    "html": (
        b"\n<!DOCTYPE html>\n<html lang='en'><head><title>Sign in\n to X</title>",
        "an HTML page with the title 'Sign in to X'",
        "login",
    ),
    "html, marked": (b"\xef\xbb\xbf<HTML><body>502</body></HTML>", "HTML page", "browser"),
    "html, UTF-16": ("\ufeff<html><title>x</title>".encode("utf-16-le"), "HTML page", "browser"),
    "html, commented": (b"<!-- from\nproxy -->\n<html>", "an HTML page", "browser"),
    "xhtml": (b'<?xml version="1.0"?>\n<!DOCTYPE html><html>', "an HTML page", "browser"),
    "xml": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>No</Message></Error>',
        "an XML document with the title 'AccessDenied: No'",
        "expired",
    ),
    "json": (json.dumps({"error": "Repository not found"}).encode(), "Repository not", "browser"),
    "json, long": (json.dumps({"weights": list(range(9999))}).encode(), "JSON", "browser"),
    "text": (b"Moved Permanently. Redirecting to /login\n", "text, beginning with 'Moved", "Ask"),
    "zeros": (bytes(100_000), "100000 bytes of which the first 4096 are zero", "Download"),
    "truncated": (WHOLE[:-100], "truncated zip archive", "Download"),
    "by one byte": (WHOLE[:-1], "zip archive (it is truncated, or something follows", "Download"),
    "a beginning": (WHOLE[:10], "truncated zip archive", "Download"),
    "an end": (WHOLE[100:], "lacks its beginning", "Download"),
    "old, truncated": (LEGACY[:-500], "torch.save's old format, truncated", "Download"),
    "old, a beginning": (LEGACY[:30], "torch.save's old format, truncated", "Download"),
    "safetensors": (TENSORS, "a safetensors file, which", "safetensors.torch.load_file"),
    "safetensors, cut": (TENSORS[:50], "safetensors file, and it is truncated", "load_file"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF", "Ask its publisher"),
    "gzip": (gzip.compress(WHOLE), "compressed with gzip", "Unpack"),
    "bzip2": (bz2.compress(WHOLE), "compressed with bzip2", "Unpack"),
    "xz": (lzma.compress(WHOLE), "compressed with xz", "Unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "compressed with zstd", "Unpack"),
    "tar": (tarred(), "a tar archive", "Unpack"),
    "zip of it": (zipped(m__state_dict_dot_bin=WHOLE), "holds 'm/state_dict.bin'", "Unpack"),
    "zip of else": (zipped(word__document_dot_xml=b"x"), "no data.pkl, but 'word/doc", "Ask"),
    "zip of nothing": (zipped(), "an empty zip archive", "Download"),
    "npz": (array("savez"), "NumPy's .npz", "torch.save"),
    "npy": (array("save"), "a NumPy array", "torch.save"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5", "Ask"),
    "wave": (waved(), "WAVE", "Ask"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), "PNG", "Ask"),
    "pickle": (pickle.dumps({"w": [1.0]}), "a pickle that torch.save did not write", "torch.save"),
    "noise": (bytes(range(1, 256)) * 9, "no format of torch.save's: it begins with 01 02", "Ask"),
    "damaged": (archive(b"\x80\x02."), "an archive of torch.save's, but", "Download"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_a_worker_says_what_its_file_is_and_what_to_do(tmp_path: Path, name: str) -> None:
    content, message, hint = NO_CHECKPOINTS[name]
    for part in ("state_dict.bin", "compression_state_dict.bin"):
        (tmp_path / part).write_bytes(content)
    with pytest.raises(NotACheckpoint) as caught:
        Client(cache_dir=tmp_path / "cache").load(tmp_path)
    assert caught.value.source == str(tmp_path)
    assert caught.value.message.startswith("state_dict.bin: it is ")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert not any(advice in str(caught.value) for advice in TORCHS_ADVICE)


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
async def test_the_daemon_says_the_same(tmp_path: Path, name: str) -> None:
    content, message, hint = NO_CHECKPOINTS[name]
    path = tmp_path / "state_dict.bin"
    path.write_bytes(content)
    async with Inspector() as inspector:
        with pytest.raises(NotACheckpoint) as caught:
            await inspector.inspect(path, source="org/name")
    assert caught.value.source == "org/name"
    assert caught.value.message.startswith("it is ")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_so_does_a_worker_with_an_old_torch(name: str) -> None:
    content, message, hint = NO_CHECKPOINTS[name]
    with memory_file(content) as fd, pytest.raises(NotACheckpoint) as caught:
        own_loader.load(fd, device=torch.device("cpu"), source="org/name")
    assert caught.value.message.startswith("it is ")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_what_only_looks_damaged_keeps_what_the_reader_said_and_advised() -> None:
    told = "the opcode FRAME, which torch's weights-only loader does not read"
    with (
        memory_file(archive(b"\x80\x04\x95" + bytes(8) + b".")) as fd,
        pytest.raises(NotACheckpoint, match=rf"cannot be read \(its pickle has {told}\)") as caught,
        recognized(fd),
    ):
        read_index(fd)
    assert "protocol" in str(caught.value.hint)


def test_a_file_that_is_read_leaves_no_word() -> None:
    with memory_file(WHOLE) as fd, recognized(fd):
        assert read_index(fd).reason is None


@pytest.mark.parametrize("legacy", [False, True])
def test_what_a_checkpoint_holds_does_not_make_it_something_else(legacy: bool) -> None:
    """The mark of a tar archive, where one would have it."""
    content = saved({"ustar" * 100: 1}, _use_new_zipfile_serialization=not legacy)
    shift = next(n for n in range(5) if (content.index(b"ustar") + n - 257) % 5 == 0)
    content = saved({"x" * shift + "ustar" * 100: 1}, _use_new_zipfile_serialization=not legacy)
    assert content[257:262] == b"ustar"
    assert recognize(io.BytesIO(content)) is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(WHOLE)),
    st.integers(0, 500),
)
def test_no_damage_is_an_error_of_ours(
    changes: list[tuple[int, int]], cut: int, directory: int
) -> None:
    content = bytearray(WHOLE)
    for at, byte in changes:
        content[at] = byte
        content[-1 - at % (directory + 1)] = byte  # most of it is data, which is all the same
    assert recognize_damage(io.BytesIO(content)).message
    assert recognize_damage(io.BytesIO(content[:cut])).message


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_looking_alone_says_the_same(name: str) -> None:
    content, message, hint = NO_CHECKPOINTS[name]
    found = recognize_damage(io.BytesIO(content))
    assert message.partition(" (")[0] in f"it is {found.message}"  # the rest is the reader's
    assert hint in found.hint


@pytest.mark.parametrize(
    "content",
    [
        WHOLE,
        LEGACY,
        saved({}),
        saved([torch.ones(3)], pickle_protocol=3),
        saved([1], _use_new_zipfile_serialization=False, pickle_protocol=3),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_is_nothing_else(content: bytes) -> None:
    assert recognize(io.BytesIO(content)) is None
    with memory_file(content) as fd:
        assert weights_only.load(fd, map_location="cpu") is not None


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04", b"PK\x05\x06", b"\x80", b"\x80\x02", b"<", b"{", b"[", b"\xff\xfe", b"\x00a"],
)
def test_a_few_bytes_are_no_error_of_ours(content: bytes) -> None:
    assert recognize_damage(io.BytesIO(content)).message
    with memory_file(content) as fd, pytest.raises(NotACheckpoint):
        weights_only.load(fd, map_location="cpu")
