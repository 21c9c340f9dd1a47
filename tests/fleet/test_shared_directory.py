"""One warm directory for many nodes: its owner writes, the others serve from it and never write."""

from __future__ import annotations

import contextlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from craftcache.config import ConfigError
from craftcached.settings_reading import load_settings
from tests.support.api import Api
from tests.support.daemons import EXPORT_FILES, DaemonProcess
from tests.support.mounts import mounted_read_only, unmount
from tests.support.tools import needs

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from pathlib import Path

    from tests.support.hub import Repo, TestHub

    Mount = Callable[[Path, Path], None]

STATE = torch.load(EXPORT_FILES["state_dict.bin"], weights_only=True)["best_state"]
"""What the export's language model holds."""


def mounted_by_fuse(store: Path, place: Path) -> None:
    subprocess.run(["bindfs", "-o", "ro", store, place], check=True, capture_output=True)


@pytest.fixture
def owner(inspected: Path, threaded_hub: TestHub, export_repo: Repo) -> Iterator[DaemonProcess]:
    """The daemon whose cache it is, with the export warmed."""
    with DaemonProcess(inspected, HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        warm(daemon)
        yield daemon


@pytest.fixture
def at(
    base: Path, owner: DaemonProcess, threaded_hub: TestHub
) -> Iterator[Callable[..., DaemonProcess]]:
    """Starts a node that has the owner's cache mounted, read-only."""
    with contextlib.ExitStack() as stack:
        made = 0

        def start(mount: Mount = mounted_read_only) -> DaemonProcess:
            nonlocal made
            made += 1
            node = base / f"node{made}"
            (node / "cache").mkdir(parents=True)
            try:
                mount(owner.cache_dir, node / "cache")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no mount here: {error.stderr}")
            stack.callback(unmount, node / "cache")
            return stack.enter_context(
                DaemonProcess(node, "--read-only", "true", HF_ENDPOINT=threaded_hub.endpoint)
            )

        yield start


def warm(node: DaemonProcess, source: str = "org/model") -> str:
    """Warm by its newest revision; returns which that is."""
    with Api(node.socket_dir) as api:
        answer = api.warm(source)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["results"][0]["revision"])


def loaded(
    node: DaemonProcess,
    source: str = "org/model",
    *,
    served_by: Container[str] = frozenset({"daemon"}),
) -> str:
    """Load it, and compare; returns the revision."""
    with node.client() as client:
        export = client.load(source)
        assert export.served_by in served_by, node.log
        for name, tensor in STATE.items():
            assert torch.equal(export.lm["best_state"][name], tensor)
        return export.revision


def own_blobs(node: DaemonProcess) -> list[Path]:
    """The model files that the node keeps itself."""
    overlay = node.state_dir / "overlay"
    found = [*overlay.glob("models--*/blobs/*"), *overlay.glob(".craftcache/blobs/sha256/*")]
    return [path for path in found if path.is_file()]


def listing(directory: Path) -> dict[str, tuple[int, int]]:
    """All that is there, with the times of its last change."""
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_ctime_ns)
    return found


def blob_of(owner: DaemonProcess) -> Path:
    """The owner's file of the language model."""
    wanted = EXPORT_FILES["state_dict.bin"].read_bytes()
    found = owner.cache_dir.glob("models--*/blobs/*")
    return next(path for path in found if path.read_bytes() == wanted)


def verdicts(node: DaemonProcess) -> set[str]:
    """What a verification says of what is not right."""
    with Api(node.socket_dir) as api:
        answer = api.request("POST", "/verify", json={})
        assert answer.status_code == 200, answer.text
        return {each["outcome"] for each in answer.json()["results"]} - {"right"}


@pytest.mark.parametrize(
    "mount", [mounted_read_only, pytest.param(mounted_by_fuse, marks=needs("bindfs"))]
)
def test_a_node_serves_what_the_owner_has_and_fetches_nothing(
    owner: DaemonProcess, at: Callable[..., DaemonProcess], threaded_hub: TestHub, mount: Mount
) -> None:
    before, asked = listing(owner.cache_dir), len(threaded_hub.requests)
    node = at(mount)
    assert loaded(node) == loaded(owner)
    assert len(threaded_hub.requests) == asked
    assert own_blobs(node) == []
    with node.client() as client:
        path = client.resolve("org/model", "state_dict.bin")
        assert path.is_relative_to(node.cache_dir)
        assert path.read_bytes() == EXPORT_FILES["state_dict.bin"].read_bytes()
    # A refresh that finds the same revision brings nothing either.
    warm(node)
    assert own_blobs(node) == []
    assert listing(owner.cache_dir) == before


def test_a_node_follows_updates_and_survives_evictions_and_the_owners_death(
    owner: DaemonProcess,
    at: Callable[..., DaemonProcess],
    threaded_hub: TestHub,
    export_repo: Repo,
) -> None:
    node = at()
    first = loaded(node)
    second = export_repo.commit({**EXPORT_FILES, "state_dict.bin": None})
    second = export_repo.commit(EXPORT_FILES)
    export_repo.commit({"README.md": b"new"})
    newest = warm(owner)
    assert newest not in (first, second)
    assert loaded(node) == newest
    with node.client() as client:
        held = client.load("org/model")
        with Api(owner.socket_dir) as api:
            assert api.delete("org/model").status_code == 200
        # What is held stays; what is loaded anew is the node's own from now on.
        for name, tensor in STATE.items():
            assert torch.equal(held.lm["best_state"][name], tensor)
    assert loaded(node) == newest
    assert len(own_blobs(node)) == len(EXPORT_FILES)
    owner.kill()
    assert loaded(node) == newest
    assert owner.cache_dir.is_dir()


def test_what_the_owners_disk_has_wrong_is_served_to_nobody(
    owner: DaemonProcess, at: Callable[..., DaemonProcess]
) -> None:
    owner.kill()  # it would find it, too, and put it aside
    blob = blob_of(owner)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    node = at()
    loaded(node)
    assert f"{blob.name} is not what was verified" in node.log
    assert blob.read_bytes() == bytes(data)  # the owner's to find
    assert own_blobs(node)


def test_rot_at_the_owner_is_found_here_and_left_there(
    owner: DaemonProcess, at: Callable[..., DaemonProcess]
) -> None:
    node = at()
    loaded(node)
    before = listing(owner.cache_dir)
    assert verdicts(node) == set()
    assert listing(owner.cache_dir) == before
    owner.kill()  # it would find it, too, and put it aside
    blob = blob_of(owner)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    before = listing(owner.cache_dir)
    assert verdicts(node) == {"mended"}
    assert listing(owner.cache_dir) == before
    assert own_blobs(node)
    loaded(node)


def test_a_restart_inspects_nothing_again(
    owner: DaemonProcess, at: Callable[..., DaemonProcess]
) -> None:
    node = at()
    loaded(node)
    indexes = listing(node.state_dir / "overlay" / ".craftcache" / "index")
    assert len(indexes) == len(EXPORT_FILES)
    node.terminate()
    node.start()
    loaded(node)
    assert listing(node.state_dir / "overlay" / ".craftcache" / "index") == indexes


def test_four_nodes_serve_while_the_owner_changes_everything(
    owner: DaemonProcess, at: Callable[..., DaemonProcess], export_repo: Repo
) -> None:
    nodes = [at() for _ in range(4)]

    # Of a node that is silent for a second, since the machine is busy, a worker reads the very
    # directory itself.
    servers = {"daemon", "cache"}

    def work(number: int) -> int:
        return len([loaded(nodes[number % 4], served_by=servers) for _ in range(2)])

    with ThreadPoolExecutor(32) as workers:
        working = [workers.submit(work, number) for number in range(32)]
        for number in range(3):
            export_repo.commit({"README.md": b"%d" % number})
            warm(owner)
            with Api(owner.socket_dir) as api:
                api.delete("org/model")
            warm(owner)
        owner.kill()
        assert [each.result() for each in working] == [2] * 32
    for node in nodes:
        loaded(node)


def test_removing_a_model_here_leaves_the_owners_files(
    owner: DaemonProcess, at: Callable[..., DaemonProcess]
) -> None:
    node, before = at(), listing(owner.cache_dir)
    loaded(node)
    with Api(node.socket_dir) as api:
        pruned = api.request("POST", "/prune", json={"filters": ["size>0"]}).json()
        assert (pruned["removed"], pruned["kept"]) == ([], [])
        assert api.delete("org/model").status_code == 200
        assert api.request("POST", "/evict", json={"dry_run": False}).status_code < 500
    assert listing(owner.cache_dir) == before
    loaded(node)
    assert own_blobs(node) == []  # it is followed again


def test_what_the_owner_keeps_takes_no_room_of_the_nodes(owner: DaemonProcess, base: Path) -> None:
    (base / "node").mkdir()
    (base / "node" / "cache").symlink_to(owner.cache_dir)
    arguments = ("--read-only", "true", "--max-bytes", "1")
    with DaemonProcess(base / "node", *arguments) as node, Api(node.socket_dir) as api:
        status = api.get("/status")
        assert status["models"] == 1
        assert status["bytes"] == api.get("/room")["used"] == 0
        assert not [problem for problem in status["problems"] if "max_bytes" in problem]


def test_a_second_writer_is_refused(owner: DaemonProcess, base: Path) -> None:
    (base / "other").mkdir()
    (base / "other" / "cache").symlink_to(owner.cache_dir)
    second = DaemonProcess(base / "other")
    second.spawn()
    assert second.wait() != 0
    assert "another craftcached" in second.log


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"overlay_dir": "/x"}, "is for a daemon with read_only"),
        ({"read_only": True, "overlay_dir": "/c/overlay"}, "are not apart"),
        ({"read_only": True, "overlay_dir": "/"}, "are not apart"),
    ],
)
def test_an_overlay_is_apart_from_what_it_lies_over(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings({"cache_dir": "/c", **given}, environment={})


@pytest.mark.parametrize(("word", "flag"), [("1", True), ("yes", True), ("false", False)])
def test_the_environment_says_yes_or_no(word: str, flag: bool) -> None:
    settings = load_settings({"cache_dir": "/c"}, environment={"CRAFTCACHE_READ_ONLY": word})
    assert settings.read_only is flag
    with pytest.raises(ConfigError, match="true or false"):
        load_settings({"cache_dir": "/c"}, environment={"CRAFTCACHE_READ_ONLY": "perhaps"})
    assert os.path.isabs(settings.own_cache_dir)


def test_a_verification_mends_in_the_overlay_and_leaves_the_owners_files_alone(
    at: Callable[..., DaemonProcess], owner: DaemonProcess
) -> None:
    node = at()
    loaded(node)
    with owner.client() as client:
        blob = client.resolve("org/model", "state_dict.bin").resolve()
    wrong = bytes(1) + blob.read_bytes()[1:]
    blob.chmod(0o644)
    owner.terminate()  # it would mend the file by itself
    blob.write_bytes(wrong)
    before = listing(owner.cache_dir)
    with Api(node.socket_dir) as api:
        found = api.request("POST", "/verify").json()["found"]
        assert found == {"right": 1, "mended": 1}
        assert api.get("/quarantine")["files"] == []
        assert api.request("POST", "/verify").json()["found"] == {"right": 2}
    assert (blob.read_bytes(), listing(owner.cache_dir)) == (wrong, before)
    assert own_blobs(node)
    loaded(node)
