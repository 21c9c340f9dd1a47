"""Published files never change: not by any operation, and not under whoever has them open."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from craftcache.daemon.admin import AdminClient
from craftcache.daemon.transport import Call
from craftcache.loading.loader import Loader
from craftcache.sources import FILENAMES, parse
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.hub import OnDisk
from tests.support.inotify import Writes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from craftcache.wire import Loaded
    from tests.support.hub import Repo, TestHub


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published file at one moment."""

    inode: int
    mtime_ns: int
    mode: int
    sha256: str


def checkpoint(start: int) -> bytes:
    content = io.BytesIO()
    torch.save({"best_state": {"weight": torch.arange(start, start + 10_000)}}, content)
    return content.getvalue()


def blob_directories(cache: Path) -> list[Path]:
    return [cache / "models--org--model" / "blobs", cache / ".craftcache" / "blobs" / "sha256"]


def published(cache: Path) -> dict[Path, Snapshot]:
    """All blobs, the indexes and the manifests, by path."""
    private = cache / ".craftcache"
    directories = (*blob_directories(cache), private / "index")
    found = {}
    for path in (path for directory in directories for path in directory.glob("*")):
        status = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path] = Snapshot(status.st_ino, status.st_mtime_ns, status.st_mode, digest)
    return found


@contextlib.contextmanager
def held(daemon: DaemonProcess, source: str) -> Iterator[tuple[Loaded, dict[str, str]]]:
    """The files of a source as a worker has them, and their digests."""
    loader = Loader(socket_dir=daemon.socket_dir, cache_dir=daemon.cache_dir, fallback="none")
    names = tuple(FILENAMES.values())
    with loader.open(parse(source), names, Call()) as opened:
        yield opened, digests(opened)


def digests(opened: Loaded) -> dict[str, str]:
    return {
        file.info.filename: hashlib.sha256(
            os.pread(file.descriptor, os.fstat(file.descriptor).st_size, 0)
        ).hexdigest()
        for file in opened.files
    }


def test_no_operation_changes_a_published_file(
    base: Path, threaded_hub: TestHub, export_repo: Repo
) -> None:
    threaded_hub.files["/same.bin"] = OnDisk(EXPORT_FILES["state_dict.bin"])
    url = threaded_hub.cdn_url("/same.bin")
    daemon = DaemonProcess(base, "--insecure-host", "127.0.0.1", HF_ENDPOINT=threaded_hub.endpoint)
    admin = AdminClient(daemon.socket_dir)
    cache = daemon.cache_dir
    with daemon, contextlib.ExitStack() as stack:
        client = stack.enter_context(daemon.client())
        client.warm("org/model")
        (cache / ".craftcache" / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        writes = stack.enter_context(Writes(blob_directories(cache)))
        before = published(cache)
        opened, expected = stack.enter_context(held(daemon, "org/model"))

        def check() -> None:
            after = published(cache)
            assert {path: after[path] for path in before if path in after} == {
                path: snapshot for path, snapshot in before.items() if path in after
            }
            assert digests(opened) == expected
            before.update(after)
            assert writes.names() == set()

        client.load("org/model")
        check()
        client.warm("org/model", resident=True)
        admin.pin("org/model", lock=True)
        check()
        client.warm(f"{url}#sha256={expected['state_dict.bin']}")  # the same file by a link
        client.load_state_dict(url)
        check()
        commit = export_repo.resolve("main")
        client.warm(f"org/model@{commit}")
        check()
        export_repo.commit({**EXPORT_FILES, "state_dict.bin": checkpoint(0)})
        client.warm("org/model")
        check()
        assert client.load("org/model").revision == export_repo.resolve("main") != commit
        daemon.kill()
        daemon.start()
        client.load("org/model")
        check()
        admin.unpin("org/model")
        admin.evict(1)
        check()
        for model in client.models():
            admin.remove(model.source)
        check()
        assert client.models() == []


def test_what_a_worker_holds_survives_removal_eviction_and_a_new_revision(
    daemon: DaemonProcess, export_repo: Repo
) -> None:
    admin = AdminClient(daemon.socket_dir)
    with daemon.client() as client, contextlib.ExitStack() as stack:
        client.warm("org/model")
        opened, expected = stack.enter_context(held(daemon, "org/model"))
        export = client.load("org/model")
        weights = {name: tensor.clone() for name, tensor in export.lm["best_state"].items()}
        eviction = admin.evict(1)
        assert [(kept.source, kept.reason) for kept in eviction.kept] == [("org/model", "in use")]
        export_repo.commit({**EXPORT_FILES, "state_dict.bin": checkpoint(7)})
        client.warm("org/model")
        assert digests(opened) == expected
        admin.remove("org/model")
        assert client.models() == []
        assert digests(opened) == expected
        for name, tensor in export.lm["best_state"].items():
            assert torch.equal(tensor, weights[name])
