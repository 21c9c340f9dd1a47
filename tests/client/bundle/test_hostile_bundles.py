"""What is no bundle, whatever a tar may hold, is refused and leaves nothing."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from craftcache.bundle import LockFile, import_bundle, unpack
from craftcache.cache.directory import CacheDir
from craftcache.errors import CraftcacheError, IntegrityError, InvalidSource, UnsafeCheckpoint
from tests.support.pickles import Op, archive

from .conftest import Member, members, unpacked_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.command import Node

    from .conftest import WarmNode


LOCK = "models.lock"


def tar_of(parts: list[Member]) -> bytes:
    """A tar of these members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for part in parts:
            tar.addfile(part.info, io.BytesIO(part.content))
    return file.getvalue()


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return Member(info, content)


def as_kind(kind: bytes, link: str = "") -> Callable[[list[Member]], list[Member]]:
    """A change that makes the first blob a member of another kind."""

    def change(parts: list[Member]) -> list[Member]:
        return [parts[0], member(parts[1].info.name, kind=kind, link=link), *parts[2:]]

    return change


def with_name(name: str) -> Callable[[list[Member]], list[Member]]:
    """A change that gives the first blob another name."""
    return lambda parts: [parts[0], member(name, parts[1].content), *parts[2:]]


def with_another_byte(parts: list[Member]) -> list[Member]:
    first = parts[1].content
    return [parts[0], member(parts[1].info.name, bytes([first[0] ^ 1]) + first[1:]), *parts[2:]]


def with_lock(change: Callable[[dict[str, Any]], None]) -> Callable[[list[Member]], list[Member]]:
    """A change of the lock."""

    def changed(parts: list[Member]) -> list[Member]:
        document = json.loads(parts[0].content)
        change(document)
        return [member(LOCK, json.dumps(document).encode()), *parts[1:]]

    return changed


def other_etag(document: dict[str, Any]) -> None:
    """Give a small file of the Hub another git blob sha1."""
    entries = (file for model in document["models"] for file in model["files"])
    next(file for file in entries if len(file["etag"]) == 40)["etag"] = "0" * 40


def climbing(document: dict[str, Any]) -> None:
    document["models"][0]["files"][0]["filename"] = "../../../../etc/cron.d/x"


def huge_header(parts: list[Member]) -> list[Member]:
    info = tarfile.TarInfo(parts[1].info.name)
    info.size, info.pax_headers = parts[1].info.size, {"comment": "x" * 30_000_000}
    return [parts[0], Member(info, parts[1].content), *parts[2:]]


CHANGES = {
    "a name that climbs out": with_name("blobs/../../../etc/passwd"),
    "an absolute name": with_name("/etc/passwd"),
    "a name in another directory": with_name("models--org--model/refs/main"),
    "a symbolic link": as_kind(tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": as_kind(tarfile.LNKTYPE, LOCK),
    "a device": as_kind(tarfile.CHRTYPE),
    "a pipe": as_kind(tarfile.FIFOTYPE),
    "a directory": as_kind(tarfile.DIRTYPE),
    "another byte": with_another_byte,
    "a file too few": lambda parts: parts[:-1],
    "a file twice": lambda parts: [*parts, parts[-1]],
    "a file too many": lambda parts: [*parts, member("blobs/" + "0" * 64, b"x")],
    "no lock": lambda parts: parts[1:],
    "the lock last": lambda parts: [*parts[1:], parts[0]],
    "nothing": lambda _: [],
    "a small file that is not what its etag says": with_lock(other_etag),
    "a file of a lock that climbs out": with_lock(climbing),
    "a lock of another version": with_lock(lambda document: document.update(version=2)),
    "a header of 30 MB": huge_header,
}


def assert_refused(data: bytes, cache: CacheDir) -> CraftcacheError:
    """That it is no bundle is said, and nothing of it is left."""
    with pytest.raises((IntegrityError, InvalidSource)) as caught:
        import_bundle(io.BytesIO(data), cache)
    left = [path for path in cache.root.rglob("*") if not path.is_dir()]
    assert left == []
    return caught.value


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_bundle_is_refused_and_leaves_nothing(
    bundle: Path, tmp_path: Path, change: str
) -> None:
    data = tar_of(CHANGES[change](members(bundle)))
    assert_refused(data, CacheDir(tmp_path / "cache"))


def test_the_daemon_refuses_the_same(other: Node, bundle: Path, tmp_path: Path) -> None:
    for change in ("a name that climbs out", "another byte"):
        path = tmp_path / "models.tar"
        path.write_bytes(tar_of(CHANGES[change](members(bundle))))
        ran = other.run("bundle", "import", str(path), "--json")
        assert ran.problem["code"] == "IntegrityError", change
    assert unpacked_files(other.daemon.cache_dir) == []
    assert other.run("ls", "--json").json["models"] == []


@settings(max_examples=40)
@given(st.data())
def test_a_bundle_that_was_cut_short_or_damaged_is_refused(
    node: WarmNode, bundle: Path, data: st.DataObject
) -> None:
    content = bytearray(bundle.read_bytes())
    blobs = members(bundle)[1:]
    # All that counts: from the first header to the last byte of the last member.
    end = blobs[-1].info.offset_data + blobs[-1].info.size
    at = data.draw(st.integers(0, end - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        lock = imported(bytes(content))
    except (IntegrityError, InvalidSource):
        return
    # A bit of padding, or of what a lock says of needs, may be flipped: never one of a file.
    assert {entry.sha256 for entry in lock.entries()} == {
        blob.info.name.removeprefix("blobs/") for blob in blobs
    }


def imported(data: bytes) -> LockFile:
    """The lock of what is imported from ``data``."""
    with tempfile.TemporaryDirectory() as directory:
        return unpack(io.BytesIO(data), Path(directory)).lock


def test_an_unsafe_checkpoint_of_a_bundle_is_refused(
    other: Node, node: WarmNode, tmp_path: Path
) -> None:
    unsafe = archive(Op.whole(Op.call("os.system", Op.value("true"))))
    digest = hashlib.sha256(unsafe).hexdigest()
    lock = {
        "version": 1,
        "models": [
            {
                "source": "org/unsafe",
                "revision": "c" * 40,
                "files": [
                    {
                        "filename": "state_dict.bin",
                        "sha256": digest,
                        "size": len(unsafe),
                        "etag": digest,
                    }
                ],
                "needed_only": False,
                "needs": [],
            }
        ],
    }
    parts = [member(LOCK, json.dumps(lock).encode()), member(f"blobs/{digest}", unsafe)]
    path = tmp_path / "models.tar"
    path.write_bytes(tar_of(parts))
    ran = other.run("bundle", "import", str(path), "--json")
    assert ran.problem["code"] == "UnsafeCheckpoint"
    assert other.run("ls", "--json").json["models"] == []
    cache = CacheDir(tmp_path / "cache")
    with pytest.raises(UnsafeCheckpoint):
        import_bundle(io.BytesIO(path.read_bytes()), cache)
    assert list(cache.manifests()) == []
    assert list(cache.staging.iterdir()) == []


def test_a_client_that_goes_away_leaves_nothing(other: Node, bundle: Path) -> None:
    def half() -> Iterator[bytes]:
        yield bundle.read_bytes()[: bundle.stat().st_size // 2]
        raise KeyboardInterrupt

    socket = str(other.daemon.socket_dir / "craftcache.sock")
    transport = httpx.HTTPTransport(uds=socket)
    with httpx.Client(transport=transport) as client, pytest.raises(KeyboardInterrupt):
        client.post("http://craftcache/v1/bundles", content=half())
    assert other.run("bundle", "import", str(bundle)).code == 0
    while unpacked_files(other.daemon.cache_dir):  # it hears of the client's end when it reads
        pass
