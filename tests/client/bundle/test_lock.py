"""``craftcache lock`` and ``warm --locked``: exactly these bytes, whatever the origins have now."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.bundle import LockFile
from craftcache.errors import CraftcacheError, InvalidSource
from craftcache.locked import LockedRevision, LockEntry
from craftcache.sources import parse
from craftcache.wire import Warm, WarmOptions
from tests.support.command import Node, run
from tests.support.dependencies import CODEC, CODEC_FILES, PAIR, REFERRING, T5_FILES
from tests.support.hub import Data
from tests.support.trees import hub_tree

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import WarmNode

SOURCES = ("org/model", "t5-base", "facebook/encodec_32khz")
DOCUMENT = {
    "version": 1,
    "models": [
        {
            "source": "org/model",
            "revision": "c" * 40,
            "files": [
                {"filename": "state_dict.bin", "sha256": "a" * 64, "size": 3, "etag": "a" * 64},
                {"filename": "config.json", "sha256": "b" * 64, "size": 4, "etag": "b" * 40},
            ],
            "needed_only": False,
            "needs": ["t5-base"],
        },
        {
            "source": "https://example.com/weights.th",
            "revision": "d" * 40,
            "files": [{"filename": "weights.th", "sha256": "a" * 64, "size": 3, "etag": None}],
            "needed_only": True,
            "needs": [],
        },
    ],
}


@pytest.fixture
def lock(node: WarmNode, tmp_path: Path) -> Path:
    """A lock of the warm models."""
    path = tmp_path / "models.lock"
    path.write_text(node.run("lock", "org/model").out)
    return path


def changed(lock: Path, **changes: str) -> None:
    """Change the lock of the language model."""
    document = json.loads(lock.read_text())
    (entry,) = (e for e in document["models"][0]["files"] if e["filename"] == "state_dict.bin")
    entry |= changes
    lock.write_text(json.dumps(document))


def test_a_lock_has_commits_digests_and_all_that_is_needed(node: WarmNode) -> None:
    locked = node.run("lock", "org/model")
    assert (locked.code, locked.err) == (0, "")
    models = {model["source"]: model for model in locked.json["models"]}
    assert set(models) == set(SOURCES)
    assert sorted(models["org/model"]["needs"]) == ["facebook/encodec_32khz", "t5-base"]
    assert [model["needed_only"] for model in models.values()] == [False, True, True]
    for source, contents in zip(SOURCES, (REFERRING, T5_FILES, CODEC_FILES), strict=True):
        listed = {file["filename"]: file["sha256"] for file in models[source]["files"]}
        assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    assert models["org/model"]["revision"] == node.model.resolve("main")
    assert node.run("lock", "org/model", "--json").out == locked.out


def test_what_is_locked_is_warmed_after_its_names_have_moved_on(
    node: WarmNode, other: Node, lock: Path, url: str
) -> None:
    both = node.run("lock", "org/model", url)
    lock.write_text(both.out)
    repo, t5 = node.model, node.t5
    first = {"org/model": repo.resolve("main"), "t5-base": t5.resolve("main")}
    repo.commit(PAIR)
    t5.commit({"config.json": b'{"model_type": "t6"}'})
    try:
        ran = other.run("warm", "--locked", str(lock), "--json")
        assert ran.code == 0, ran.err
        revisions = {result["source"]: result["revision"] for result in ran.json["results"]}
        assert revisions.items() >= first.items()
        for source in SOURCES:
            assert hub_tree(other.daemon.cache_dir, source) == hub_tree(
                node.daemon.cache_dir, source
            )
        asked = node.hub.count(None)
        assert other.run("warm", "--locked", str(lock)).code == 0
        assert other.run("warm", "--check", "--locked", str(lock)).code == 0
        with other.daemon.client() as client:
            assert client.load("org/model").revision == first["org/model"]
        assert node.hub.count(None) == asked
        needed = {model["source"]: model for model in _listed(other)}
        assert [needed[source]["needed_only"] for source in SOURCES] == [False, True, True]
        assert other.run("lock", "org/model", url).out == both.out
        assert other.run("warm", "org/model").code == 0  # a plain one follows the Hub again
        assert other.run("warm", "--check", "--locked", str(lock), "org/model").code == 1
    finally:
        repo.branch("main", str(first["org/model"]))
        t5.branch("main", str(first["t5-base"]))


def _listed(node: Node) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = node.run("ls", "--json").json["models"]
    return models


@pytest.mark.parametrize("place", ["daemon", "own process"])
def test_another_sha256_is_an_integrity_error_that_names_the_file(
    node: WarmNode, other: Node, lock: Path, tmp_path: Path, place: str
) -> None:
    changed(lock, sha256="0" * 64, etag="0" * 64)
    before = node.hub.count("GET", "/lfs/org/model/*")
    arguments = ("warm", "--locked", str(lock), "--json", "org/model")
    if place == "daemon":
        ran = other.run(*arguments)
    else:
        directories = ("--socket-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"))
        ran = run(*directories, *arguments, HF_ENDPOINT=node.hub.endpoint)
    assert ran.code == 1
    problem = json.loads(ran.err.splitlines()[-1])
    assert (problem["code"], problem["source"]) == ("IntegrityError", "org/model")
    assert "state_dict.bin" in problem["detail"]
    assert "0" * 64 in problem["detail"]
    assert node.hub.count("GET", "/lfs/org/model/*") == before  # it was known before the first byte
    assert "refs/main" not in hub_tree(other.daemon.cache_dir, "org/model")


def test_without_the_daemon_a_lock_is_kept_to_as_well(
    node: WarmNode, lock: Path, tmp_path: Path
) -> None:
    directories = ("--socket-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"))
    arguments = (*directories, "warm", "--locked", str(lock), "--json")
    ran = run(*arguments, HF_ENDPOINT=node.hub.endpoint)
    assert ran.code == 0, ran.err
    for source in SOURCES:
        assert hub_tree(tmp_path / "cache", source) == hub_tree(node.daemon.cache_dir, source)
    asked = node.hub.count(None)
    again = run(*arguments, HF_ENDPOINT=node.hub.endpoint)
    assert {result["served_by"] for result in again.json["results"]} == {"cache"}
    assert node.hub.count(None) == asked


def test_a_changed_file_under_a_locked_url_is_an_integrity_error(
    node: WarmNode, other: Node, tmp_path: Path
) -> None:
    path = "/plain/changing.th"
    node.hub.files[path] = Data(CODEC)
    url = node.hub.cdn_url(path)
    assert node.run("warm", url).code == 0
    lock = tmp_path / "models.lock"
    lock.write_text(node.run("lock", url).out)
    assert other.run("warm", "--locked", str(lock)).code == 0
    assert other.run("rm", url).code == 0
    node.hub.files[path] = Data(REFERRING["compression_state_dict.bin"])
    ran = other.run("warm", "--locked", str(lock), "--json")
    assert ran.problem["code"] == "IntegrityError"


def test_a_lock_is_queued_like_any_warm(other: Node, lock: Path) -> None:
    assert other.run("warm", "--detach", "--locked", str(lock)).code == 0
    assert other.run("warm", "--locked", str(lock)).code == 0
    assert other.run("warm", "--check", "--locked", str(lock)).code == 0


def test_what_cannot_be_locked_is_said(node: WarmNode, tmp_path: Path) -> None:
    absent = node.run("lock", "org/absent", "--json")
    assert absent.problem["hint"] == "craftcache warm org/absent"
    signed = node.run("lock", "https://example.com/w.th?sig=1", "--json")
    assert signed.problem["code"] == "InvalidSource"
    assert "sig" not in signed.err.replace("signature", "")
    assert node.run("lock", "watch:run", "--json").problem["code"] == "InvalidSource"
    assert node.run("warm").code == 2
    missing = node.run("warm", "--locked", str(tmp_path / "none"), "--json")
    assert missing.problem["code"] == "NotFound"


def test_the_part_of_a_lock_that_a_source_needs() -> None:
    whole = LockFile.parse(json.dumps(DOCUMENT | {"later": 1}).encode(), name="it")
    assert json.loads(whole.dump()) == DOCUMENT
    part = whole.only(["https://example.com/weights.th"])
    assert [model.source.shown for model in part.models] == ["https://example.com/weights.th"]
    with pytest.raises(CraftcacheError, match="does not name it"):
        whole.only(["org/model"])  # it needs t5-base, which the lock lacks


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.text(max_size=4), st.just([]), st.just({}),
    st.sampled_from(["../x", "/etc/passwd", "a/../../b", "watch:run", "A" * 64, "c" * 39, "x\n"]),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of a document stands."""
    if isinstance(value, dict):
        return [path, *(p for key, item in value.items() for p in places(item, (*path, key)))]
    if isinstance(value, list):
        return [path, *(p for at, item in enumerate(value) for p in places(item, (*path, at)))]
    return [path]


@given(st.sampled_from(places(DOCUMENT)[1:]), WRONG)
def test_a_lock_with_one_wrong_value_is_refused_or_means_no_other_place(
    place: tuple[Any, ...], wrong: Any
) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    *way, last = place
    target = document
    for step in way:
        target = target[step]
    target[last] = wrong
    try:
        lock = LockFile.parse(json.dumps(document).encode(), name="it")
    except InvalidSource:
        return
    for model in lock.models:
        assert len(model.lock.revision) == 40
        for entry in model.lock.files:
            assert ".." not in entry.filename.split("/")
            assert not entry.filename.startswith("/")


def test_what_is_too_much_for_one_request_is_said() -> None:
    entries = tuple(LockEntry(f"shard-{n}.bin", "a" * 64, 1, "a" * 64) for n in range(500))
    with pytest.raises(InvalidSource, match="too long for one request"):
        Warm(parse("org/model"), WarmOptions(lock=LockedRevision("c" * 40, entries)))
    with pytest.raises(InvalidSource, match="too many or too long"):
        Warm(parse("org/model"), WarmOptions(include=("x" * 250,) * 60))
    with pytest.raises(InvalidSource, match="cannot be locked"):
        Warm(parse("watch:run"), WarmOptions(lock=LockedRevision("c" * 40, entries[:1])))
