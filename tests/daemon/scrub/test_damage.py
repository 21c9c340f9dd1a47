"""Each kind of byte in a cache damaged in turn: what loads give then, and what a verification says.

Loads give the right tensors or an error of ours, with the daemon and without.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from craftcache import Client
from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.sources import parse
from tests.client.cache.outcomes import export_bytes, outcome
from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.dependencies import PAIR, host_t5
from tests.support.hub import Data, Gate, Stall, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.hub import TestHub

LM = "state_dict.bin"
MODEL = "org/model"


class Damaged:
    """A daemon with a Hub model and an export at a URL, and whoever loads them."""

    def __init__(self, daemon: DaemonProcess, url: str) -> None:
        self.daemon = daemon
        self.values = {MODEL: 1.0, url: 2.0}
        self.cache = CacheDir(daemon.cache_dir)

    def blob(self, source: str) -> Path:
        manifest = self.cache.manifest(parse(source))
        assert manifest is not None
        record = manifest.file(LM)
        assert record is not None
        return self.cache.path(record)

    def index(self, source: str) -> Path:
        manifest = self.cache.manifest(parse(source))
        assert manifest is not None
        record = manifest.file(LM)
        assert record is not None
        return self.cache.index_path(record.sha256)

    def manifest(self, source: str) -> Path:
        return self.cache.manifest_path(manifest_key(parse(source)))

    def verify(self) -> dict[tuple[str, str], str]:
        """What is found that is not right: the outcomes by source and part."""
        with Api(self.daemon.socket_dir) as api:
            answer = api.request("POST", "/verify")
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        return {
            (each["source"], each["part"]): each["outcome"]
            for each in results
            if each["outcome"] != "right"
        }

    def alone(self) -> Client:
        return Client(
            socket_dir=self.daemon.socket_dir / "none",
            cache_dir=self.daemon.cache_dir,
            fallback="cache",
        )

    def assert_no_wrong_tensor(self) -> None:
        with self.alone() as alone, self.daemon.client() as served:
            for client in (alone, served):
                for source, value in self.values.items():
                    got = outcome(client, source, value)
                    assert not got.is_wrong, (source, got)

    def assert_all_is_served(self) -> None:
        assert self.verify() == {}
        with self.alone() as alone, self.daemon.client() as served:
            for source, value in self.values.items():
                assert outcome(alone, source, value).served_by == "cache"
                assert outcome(served, source, value).served_by == "daemon"


@pytest.fixture
def damaged(base: Path, threaded_hub: TestHub) -> Iterator[Damaged]:
    threaded_hub.repo(MODEL).commit(export_bytes(1.0))
    threaded_hub.files |= {f"/m/{name}": Data(own) for name, own in export_bytes(2.0).items()}
    url = threaded_hub.cdn_url("/m/")
    with DaemonProcess(
        base, HF_ENDPOINT=threaded_hub.endpoint, CRAFTCACHE_SCRUB_DAYS="0"
    ) as daemon:
        with Api(daemon.socket_dir) as api:
            assert api.warm(MODEL, url).is_success
        yield Damaged(daemon, url)


def flip(path: Path, at: int) -> None:
    """Flip a bit and put the times back; only the ctime tells of it."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    rewrite(path, bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def edited(document: Any, key: str) -> Any:
    """A JSON document in which the first value of that key is another one of the same kind."""
    if isinstance(document, list):
        return [edited(each, key) for each in document]
    if not isinstance(document, dict):
        return document
    if key not in document:
        return {name: edited(value, key) for name, value in document.items()}
    value = document[key]
    match value:
        case bool() | None:
            other: Any = 1
        case int():
            other = value + 1
        case str():
            other = value[:-1] + ("0" if value[-1:] != "0" else "1")
        case _:
            other = [0]
    return document | {key: other}


def keys_of(document: Any) -> set[str]:
    match document:
        case dict():
            return set(document).union(*map(keys_of, document.values()))
        case list():
            return set().union(*map(keys_of, document))
    return set()


def test_a_blob_at_its_head_its_middle_and_its_tail(damaged: Damaged) -> None:
    for source in damaged.values:
        size = damaged.blob(source).stat().st_size
        for at in (0, size // 2, size - 1):
            flip(damaged.blob(source), at)
            damaged.assert_no_wrong_tensor()
            flip(damaged.blob(source), at)
            assert damaged.verify() == {(source, "file"): "mended"}
    damaged.assert_all_is_served()


def test_the_directories_of_two_repositories_that_change_places(
    damaged: Damaged, threaded_hub: TestHub
) -> None:
    """Refs and links then lead to right files of the wrong model."""
    threaded_hub.repo("org/twin").commit(export_bytes(7.0))
    with Api(damaged.daemon.socket_dir) as api:
        assert api.warm("org/twin").is_success
    damaged.values["org/twin"] = 7.0
    one, two = (damaged.cache.hub_tree(source).root for source in (MODEL, "org/twin"))
    away = one.with_name("away")
    for old, new in ((one, away), (two, one), (away, two)):
        old.rename(new)
    damaged.assert_no_wrong_tensor()
    damaged.verify()
    damaged.assert_all_is_served()


def test_each_field_of_an_index(damaged: Damaged) -> None:
    path = damaged.index(MODEL)
    written = path.read_bytes()
    keys = sorted(keys_of(json.loads(written)))
    assert len(keys) > 5
    for key in keys:
        rewrite(path, json.dumps(edited(json.loads(written), key)).encode())
        damaged.assert_no_wrong_tensor()
        assert damaged.verify() == {(MODEL, "index"): "mended"}
        assert path.read_bytes() == written
    damaged.assert_all_is_served()


def test_directories_in_the_places_of_an_index_and_its_stamps(damaged: Damaged) -> None:
    index = damaged.index(MODEL)
    for path in (index, damaged.cache.stamps.path(damaged.blob(MODEL).name)):
        path.unlink()
        (path / "somebody-s").mkdir(parents=True)
    assert damaged.verify() == {(MODEL, "index"): "mended"}
    assert index.is_file()
    damaged.assert_all_is_served()
    flip(damaged.blob(MODEL), 0)
    assert damaged.verify() == {(MODEL, "file"): "mended"}
    damaged.assert_all_is_served()


def test_each_field_of_a_manifest(damaged: Damaged) -> None:
    for source in damaged.values:
        path = damaged.manifest(source)
        document = json.loads(path.read_bytes())
        for key in sorted(keys_of(document)):
            rewrite(path, json.dumps(edited(json.loads(path.read_bytes()), key)).encode())
            # The look after the daemon's start may have been the one that mended it.
            assert damaged.verify() in ({(source, "manifest"): "mended"}, {})
            assert damaged.cache.manifest(parse(source)) is not None
            rewrite(path, json.dumps(edited(json.loads(path.read_bytes()), key)).encode())
            damaged.assert_no_wrong_tensor()
            damaged.verify()
    damaged.assert_all_is_served()


def test_a_manifest_that_no_memory_holds(damaged: Damaged, threaded_hub: TestHub) -> None:
    url = next(source for source in damaged.values if source != MODEL)
    for source, field in ((MODEL, "revision"), (MODEL, "source"), (url, "source")):
        damaged.daemon.terminate()
        path = damaged.manifest(source)
        rewrite(path, json.dumps(edited(json.loads(path.read_bytes()), field)).encode())
        damaged.daemon.start()
        found = damaged.verify()
        if source == MODEL:  # the paths of its files say whose they are, too
            assert found == {(MODEL, "manifest"): "mended"}
            assert len(threaded_hub.matching(f"*/{LM}", origin="cdn")) == 2  # none came again
        else:  # what it was of cannot be told, so it waits for a load
            assert list(found.values()) == ["wrong"]
            assert not path.exists()
            with damaged.daemon.client() as client:
                assert not outcome(client, url, 2.0).is_wrong
    damaged.assert_all_is_served()


def test_what_models_are_kept_for_outlives_their_manifests(
    base: Path, threaded_hub: TestHub
) -> None:
    """A revision or a dependency that nobody asked for is none that somebody asked for then."""
    host_t5(threaded_hub)
    threaded_hub.repo("org/one").commit(PAIR)
    repo = threaded_hub.repo(MODEL)
    fields = ("superseded", "published_at", "sha256", "revision", "checksum", "size")
    with DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        damaged = Damaged(daemon, MODEL)
        with Api(daemon.socket_dir) as api:
            commits = []
            for number in range(len(fields)):
                commits.append(repo.commit({"config.json": b"%d" % number}))
                assert api.warm(MODEL, files=("config.json",)).is_success
            repo.commit({"config.json": b"newest"})
            assert api.warm("org/one").is_success
            assert api.warm(MODEL, files=("config.json",)).is_success
            before = kept_for(api)
        superseded = [f"{MODEL}@{commit}" for commit in commits]
        assert before == {MODEL: True, "org/one": True, "t5-base": False} | dict.fromkeys(
            superseded, False
        )
        asked = len(threaded_hub.matching(f"*{MODEL}*", method=None))
        daemon.terminate()
        for source, field in zip((*superseded, "t5-base"), (*fields, "needed_only"), strict=True):
            path = damaged.manifest(source)
            rewrite(path, json.dumps(edited(json.loads(path.read_bytes()), field)).encode())
        *whole, gone = superseded
        damaged.cache.hub_tree(MODEL).pointer(commits[-1], "config.json").resolve().unlink()
        daemon.start()
        found = damaged.verify()
        # Nothing is fetched for what nobody has asked for.
        assert found.pop((gone, "manifest")) == "wrong"
        assert found == {(source, "manifest"): "mended" for source in (*whole, "t5-base")}
        with Api(daemon.socket_dir) as api:
            del before[gone]
            assert kept_for(api) == before
        assert damaged.verify() == {}
        assert len(threaded_hub.matching(f"*{MODEL}*", method=None)) == asked


def test_links_and_refs(damaged: Damaged) -> None:
    manifest = damaged.cache.manifest(parse(MODEL))
    assert manifest is not None
    tree = damaged.cache.hub_tree(MODEL)
    pointer = tree.pointer(manifest.revision, LM)
    other = tree.pointer(manifest.revision, "compression_state_dict.bin")
    for target in (os.readlink(other), "../../blobs/nothing", str(damaged.blob(MODEL).parent)):
        pointer.unlink()
        pointer.symlink_to(target)
        damaged.assert_no_wrong_tensor()
        damaged.verify()
        assert pointer.samefile(damaged.blob(MODEL))
    pointer.unlink()
    assert damaged.verify() == {(MODEL, "link"): "mended"}
    ref = tree.root / "refs" / "main"
    for content in (b"", b"\xff", b"no commit", b"0" * 40):
        rewrite(ref, content)
        damaged.assert_no_wrong_tensor()
        damaged.verify()
        assert ref.read_text() == manifest.revision
    damaged.assert_all_is_served()


def test_links_of_torch_hub(base: Path, threaded_hub: TestHub) -> None:
    content = export_bytes(1.0)[LM]
    name = f"extra-{hashlib.sha256(content).hexdigest()[:8]}.th"
    threaded_hub.files[f"/{name}"] = Data(content)
    url = threaded_hub.cdn_url(f"/{name}")
    with (
        DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint) as daemon,
        Api(daemon.socket_dir) as api,
    ):
        assert api.warm(url).is_success
        link = daemon.cache_dir / ".craftcache" / "torch" / "hub" / "checkpoints" / name
        evil = base / "evil"
        evil.write_bytes(b"no checkpoint")
        for target in (evil, base / "nothing"):
            link.unlink()
            link.symlink_to(target)
            (_, found) = api.request("POST", "/verify").json()["results"]
            assert (found["part"], found["outcome"]) == ("link", "mended")
            assert link.read_bytes() == content
        link.unlink()
        link.write_bytes(b"no checkpoint")
        assert api.request("POST", "/verify").json()["found"] == {"right": 1, "mended": 1}
        assert link.read_bytes() == content


def test_stamps_and_the_format_cost_no_more_than_a_hash(damaged: Damaged) -> None:
    for directory in ("stamps", "."):
        for path in (damaged.cache.private / directory).glob("*.json"):
            damaged.daemon.terminate()
            flip(path, len(path.read_bytes()) // 2)
            damaged.daemon.start()
            damaged.assert_no_wrong_tensor()
    damaged.assert_all_is_served()


def test_the_database_at_any_place(damaged: Damaged) -> None:
    path = damaged.daemon.state_dir / "craftcached.sqlite"
    for share in (0.0, 0.001, 0.1, 0.5, 0.999):
        damaged.daemon.terminate()
        size = path.stat().st_size
        content = bytearray(path.read_bytes())
        start = int(share * size)
        content[start : start + 64] = os.urandom(len(content[start : start + 64]))
        path.write_bytes(content)
        damaged.daemon.start()
        damaged.assert_no_wrong_tensor()
        assert damaged.verify() == {}
    damaged.assert_all_is_served()


def claim_all(journal: Path) -> None:
    """As if all bytes had come, and were on the disk."""
    size = journal.with_suffix(".part").stat().st_size
    with journal.open("a") as file:
        file.write(f"w 0 {size}\nd 0 {size}\nh {size} {'0' * 64}\n")


JOURNAL_DAMAGES: tuple[Callable[[Path], object], ...] = (
    claim_all,
    lambda journal: flip(journal, journal.stat().st_size // 2),
    lambda journal: os.truncate(journal, journal.stat().st_size // 2),
    lambda journal: rewrite(journal, os.urandom(300)),
    lambda journal: rewrite(journal, b""),
    lambda journal: flip(journal.with_suffix(".part"), 1000),
)


def test_journals_of_downloads_that_a_stop_has_interrupted(
    base: Path, threaded_hub: TestHub
) -> None:
    """Each is damaged in another way, of a file with a digest and of one without.

    Nobody is served a partial download, so a verification says nothing of it.
    """
    values: dict[str, float] = {}
    for number, _ in enumerate(JOURNAL_DAMAGES):
        name, value = f"org/part{number}", float(number)
        content = export_bytes(value, numel=160_000)[LM]
        threaded_hub.repo(name).commit({LM: content})
        threaded_hub.files[f"/{name}/{LM}"] = Data(content)
        values |= {name: value, threaded_hub.cdn_url(f"/{name}/{LM}"): value}
    gate = Gate()
    stalled = threaded_hub.inject(
        Stall(gate), when=lambda request: is_later_range(request.range), times=None
    )
    limits = {"CRAFTCACHE_MAX_CONNECTIONS": "64", "CRAFTCACHE_MAX_CONNECTIONS_PER_HOST": "64"}
    with DaemonProcess(base, HF_ENDPOINT=threaded_hub.endpoint, **limits) as daemon:
        with Api(daemon.socket_dir) as api:
            assert api.warm(*values, files=(LM,), wait=False).is_success
        staging = daemon.cache_dir / ".craftcache" / "staging" / "fetch"
        while len(begun := sorted(filter(has_begun, staging.glob("*.journal")))) < len(values):
            pass
        daemon.terminate()
        stalled.cancel()
        gate.open()
        with_digest = [path for path in begun if '"sha256:' in path.read_text()]
        without = [path for path in begun if path not in with_digest]
        assert len(with_digest) == len(without) == len(JOURNAL_DAMAGES)
        for paths in (with_digest, without):
            for damage, path in zip(JOURNAL_DAMAGES, paths, strict=True):
                damage(path)
        daemon.start()
        damaged = Damaged(daemon, MODEL)
        with damaged.alone() as alone, daemon.client() as served:
            for source, value in values.items():
                for client in (served, alone):
                    loaded = client.load(source, parts=("lm",)).lm
                    assert bool((loaded["best_state"]["w"] == value).all()), source
        assert damaged.verify() == {}


def has_begun(journal: Path) -> bool:
    return "w 0 " in journal.read_text()


def is_later_range(asked: str | None) -> bool:
    return asked is not None and not asked.startswith("bytes=0-")


def test_what_cannot_be_fetched_anew_is_said_and_not_served(
    damaged: Damaged, threaded_hub: TestHub
) -> None:
    gone = Status(404, {"X-Error-Code": "RepoNotFound"})
    away = threaded_hub.inject(gone, path="*", method=None, times=None)
    for source in damaged.values:
        flip(damaged.blob(source), 0)
    found = damaged.verify()
    assert found.keys() == {(source, "file") for source in damaged.values}
    # The daemon's look at what was touched, a second after its start, may have come first.
    assert set(found.values()) <= {"wrong", "missing"}
    damaged.assert_no_wrong_tensor()
    assert damaged.verify() == {(source, "file"): "missing" for source in damaged.values}
    away.left = 0
    assert set(damaged.verify().values()) == {"mended"}
    damaged.assert_all_is_served()


def test_the_daemon_scrubs_by_itself(base: Path, threaded_hub: TestHub) -> None:
    """With a period of some seconds it finds and mends all of it, and tells of it."""
    threaded_hub.repo(MODEL).commit(export_bytes(1.0))
    environment = {"HF_ENDPOINT": threaded_hub.endpoint, "CRAFTCACHE_SCRUB_DAYS": "0.00003"}
    with DaemonProcess(base, **environment) as daemon:
        with Api(daemon.socket_dir) as api:
            assert api.warm(MODEL).is_success
        damaged = Damaged(daemon, MODEL)
        daemon.terminate()
        flip(damaged.blob(MODEL), 0)
        flip(damaged.index(MODEL), -3)
        (damaged.cache.hub_tree(MODEL).root / "refs" / "main").write_text("nothing")
        daemon.start()
        with Api(daemon.socket_dir) as api:
            wait_for(api, r'craftcache_scrub_findings_total{outcome="mended"} [2-9]')
            wait_for(api, r"craftcache_quarantined_files 1\.0")
            wait_for(api, r'craftcache_scrub_findings_total{outcome="right"} ([3-9]|\d\d)')
        damaged.values = {MODEL: 1.0}
        damaged.assert_all_is_served()


def kept_for(api: Api) -> dict[str, bool]:
    """Of each model that is cached whether somebody asked for it by its name."""
    models = api.get("/models")["models"]
    return {each["source"]: not (each["superseded"] or each["needed_only"]) for each in models}


def wait_for(api: Api, pattern: str) -> None:
    """Wait until the metrics say so."""
    while not re.search(pattern, api.request("GET", "/../metrics").text):
        pass


def endless_device(directory: Path) -> Path:
    """A device like /dev/zero; for root, which could remove that, one of the test's own."""
    if os.geteuid() != 0:
        return Path("/dev/zero")
    device = directory / "zero"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no device can be made here")
    return device


def test_what_is_no_file_in_the_place_of_a_blob(damaged: Damaged) -> None:
    device = endless_device(damaged.daemon.cache_dir.parent)
    for put in (os.mkfifo, os.mkdir, lambda path: os.symlink(device, path)):
        for source in damaged.values:
            path = damaged.blob(source)
            path.unlink()
            put(path)
            damaged.assert_no_wrong_tensor()
        assert damaged.verify() == {}
    damaged.blob(MODEL).unlink()
    damaged.blob(MODEL).symlink_to(device)
    assert damaged.verify() == {(MODEL, "file"): "mended"}
    assert stat.S_ISCHR(device.stat().st_mode)
    damaged.assert_all_is_served()
