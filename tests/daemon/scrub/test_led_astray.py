"""What leads unmodified programs to the wrong model: it is mended for good, or named as wrong."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from huggingface_hub import hf_hub_download

from craftcache.cache.directory import CacheDir
from craftcache.cache.manifest import manifest_key
from craftcache.cache.sealed import seal
from craftcache.sources import FILENAMES, HubSource, parse
from tests.client.cache.outcomes import export_bytes, outcome
from tests.support.api import Api
from tests.support.daemons import DaemonProcess
from tests.support.hub import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from craftcache.cache.hub_cache import HubTree
    from tests.support.hub import Repo, TestHub

ONE, TWO = MODELS = ("org/one", "org/two")
VALUES = {ONE: 1.0, TWO: 2.0}
LM = FILENAMES["lm"]


class Node:
    """A daemon with two models, and unmodified programs that are offline."""

    def __init__(self, daemon: DaemonProcess, repos: dict[str, Repo]) -> None:
        self.daemon = daemon
        self.repos = repos
        self.cache = CacheDir(daemon.cache_dir)

    def tree(self, model: str) -> HubTree:
        return self.cache.hub_tree(model)

    def manifest(self, source: str) -> Path:
        return self.cache.manifest_path(manifest_key(parse(source)))

    def revision(self, model: str) -> str:
        manifest = self.cache.manifest(HubSource(model))
        assert manifest is not None
        return manifest.revision

    def snapshot(self, model: str) -> Path:
        return self.tree(model).root / "snapshots" / self.revision(model)

    def edit(self, edited: str, **fields: Any) -> None:
        """Change a manifest, and let its checksum be right."""
        path = self.manifest(edited)
        document = json.loads(path.read_bytes()) | fields
        del document["checksum"]
        path.write_bytes(seal(document))

    def verify(self) -> list[tuple[str, str, str]]:
        """Source, part and outcome of all that is not right."""
        with Api(self.daemon.socket_dir) as api:
            results = api.request("POST", "/verify").json()["results"]
        return [
            (each["source"], each["part"], each["outcome"])
            for each in results
            if each["outcome"] != "right"
        ]

    def assert_all_is_right(self) -> None:
        """For whoever asks: us, and an unmodified program, by branch and by commit."""
        assert self.verify() == []
        with self.daemon.client() as client:
            for model, value in VALUES.items():
                assert not outcome(client, model, value).is_wrong
        for model, value in VALUES.items():
            for revision in ("main", self.revision(model)):
                assert librarys(self.daemon.cache_dir, model, revision) == value


def librarys(cache_dir: Path, model: str, revision: str = "main") -> float:
    """The value of the tensors that unmodified huggingface_hub finds offline."""
    path = hf_hub_download(model, LM, revision=revision, cache_dir=cache_dir, local_files_only=True)
    loaded = torch.load(io.BytesIO(Path(path).read_bytes()), weights_only=True)
    return float(loaded["best_state"]["w"][0])


@pytest.fixture
def node(base: Path, threaded_hub: TestHub) -> Iterator[Node]:
    repos = {model: threaded_hub.repo(model) for model in MODELS}
    for model, value in VALUES.items():
        repos[model].commit(export_bytes(value))
    with DaemonProcess(
        base, HF_ENDPOINT=threaded_hub.endpoint, CRAFTCACHE_SCRUB_DAYS="0"
    ) as daemon:
        with Api(daemon.socket_dir) as api:
            assert api.warm(*MODELS).is_success
        yield Node(daemon, repos)


@pytest.mark.parametrize("leads_to", ["another model's", "the same model's earlier one", "nothing"])
def test_a_snapshot_that_is_a_link(node: Node, leads_to: str) -> None:
    snapshot = node.snapshot(ONE)
    target: Path = node.snapshot(TWO)
    if leads_to == "the same model's earlier one":
        target = snapshot
        node.repos[ONE].commit({LM: export_bytes(3.0)[LM]})
        with Api(node.daemon.socket_dir) as api:
            assert api.warm(ONE).is_success
        snapshot = node.snapshot(ONE)
    elif leads_to == "nothing":
        target = target.with_name("nothing")
    shutil.rmtree(snapshot)
    snapshot.symlink_to(target)
    assert (ONE, "link", "mended") in node.verify()
    assert node.verify() == []
    assert not snapshot.is_symlink()
    if leads_to != "the same model's earlier one":
        node.assert_all_is_right()
    else:
        assert librarys(node.daemon.cache_dir, ONE) == 3.0
        assert librarys(node.daemon.cache_dir, ONE, target.name) == VALUES[ONE]


def test_a_model_goes_and_takes_no_other_models_links_with_it(node: Node) -> None:
    snapshot = node.snapshot(ONE)
    shutil.rmtree(snapshot)
    snapshot.symlink_to(node.snapshot(TWO))
    with Api(node.daemon.socket_dir) as api:
        assert api.delete(ONE).is_success
    assert node.verify() == []
    assert librarys(node.daemon.cache_dir, TWO) == VALUES[TWO]


def exchange(one: Path, two: Path) -> None:
    away = one.with_name("away")
    for old, new in ((one, away), (two, one), (away, two)):
        old.rename(new)


def test_two_repositories_that_change_places(node: Node) -> None:
    exchange(*(node.tree(model).root for model in MODELS))
    found = node.verify()
    assert {outcome for _, _, outcome in found} == {"mended"}
    node.assert_all_is_right()


def test_two_repositories_that_change_places_where_nothing_can_be_fetched(
    node: Node, threaded_hub: TestHub
) -> None:
    away = threaded_hub.inject(Status(503), path="*", method=None, times=None)
    exchange(*(node.tree(model).root for model in MODELS))
    assert {(source, "file", "missing") for source in MODELS} <= set(node.verify())
    for model in MODELS:  # what is not there is not found, and nothing else is
        with pytest.raises(FileNotFoundError):
            librarys(node.daemon.cache_dir, model)
    assert {outcome for _, _, outcome in node.verify()} == {"missing"}
    away.left = 0
    node.verify()
    node.assert_all_is_right()


def test_refs_that_two_models_share_are_named(node: Node) -> None:
    refs = node.tree(ONE).root / "refs"
    shutil.rmtree(refs)
    refs.symlink_to(node.tree(TWO).root / "refs")
    for _ in range(2):
        assert any(outcome == "wrong" for _, _, outcome in node.verify())


@pytest.mark.parametrize(
    ("source", "is_remembered"), [(TWO, True), (TWO, False), ("https://h/x.th", False)]
)
def test_a_manifest_that_names_another_source(node: Node, source: str, is_remembered: bool) -> None:
    if not is_remembered:
        node.daemon.terminate()
    node.edit(ONE, source=source)
    if not is_remembered:
        node.daemon.start()
    assert node.verify() == [(ONE, "manifest", "mended")]
    node.assert_all_is_right()


def test_two_manifests_that_differ_about_one_commit_are_named(node: Node) -> None:
    revision = node.revision(ONE)
    with Api(node.daemon.socket_dir) as api:
        assert api.warm(f"{ONE}@{revision}").is_success
    document = json.loads(node.manifest(ONE).read_bytes())
    one, two = document["files"]
    names = one["filename"], two["filename"]
    one["filename"], two["filename"] = reversed(names)
    node.daemon.terminate()
    node.edit(ONE, files=[one, two])
    node.daemon.start()
    for _ in range(2):
        found = node.verify()
        assert (ONE, "link", "wrong") in found
    with Api(node.daemon.socket_dir) as api:
        for source in (ONE, f"{ONE}@{revision}"):
            assert api.delete(source).is_success
        assert api.warm(ONE).is_success
    node.assert_all_is_right()


def test_links_that_lead_astray_while_a_file_lacks(node: Node) -> None:
    """The daemon asks the Hub then, and takes no link's word for what is recorded."""
    pointer = node.tree(ONE).pointer(node.revision(ONE), LM)
    other = node.tree(ONE).pointer(node.revision(ONE), FILENAMES["compression"])
    pointer.resolve().unlink()
    pointer.unlink()
    pointer.symlink_to(other.readlink())
    with node.daemon.client() as client:
        assert not outcome(client, ONE, VALUES[ONE]).is_wrong
        assert client.resolve(ONE, LM).read_bytes() == export_bytes(VALUES[ONE])[LM]
    node.assert_all_is_right()


def test_a_path_is_that_of_the_verified_file_whatever_the_link_says(node: Node) -> None:
    pointer = node.tree(ONE).pointer(node.revision(ONE), LM)
    blob = pointer.resolve()
    pointer.unlink()
    pointer.symlink_to(node.tree(TWO).pointer(node.revision(TWO), LM).resolve())
    with node.daemon.client() as client:
        assert client.resolve(ONE, LM) == blob
