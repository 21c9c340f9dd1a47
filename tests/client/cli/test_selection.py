"""``craftcache warm --include``: whole repositories, for programs other than AudioCraft."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.errors import NotACheckpoint, NotFound
from craftcache.sources import Selection
from tests.support.command import Node, run
from tests.support.daemons import EXPORT_FILES
from tests.support.pickles import Op, archive
from tests.support.trees import hub_tree

if TYPE_CHECKING:
    from tests.support.hub import Repo, TestHub

TRANSFORMERS = {
    ".gitattributes": b"*.bin filter=lfs\n",
    "README.md": b"# musicgen\n",
    "config.json": b'{"model_type": "musicgen"}',
    "generation_config.json": b"{}",
    "model.safetensors": b"\0" * 50_000,
    "preprocessor_config.json": b"{}",
    "spiece.model": b"sp" * 3000,
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "onnx/decoder.onnx": b"\x08onnx" * 2000,
    "ggml/weights.bin": b"ggml" * 2000,
}
WANTED = ["*.json", "*.safetensors", "spiece.model"]

UNSAFE = archive(Op.whole(Op.call("os.system", Op.value("true"))))

SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], cache_dir=sys.argv[2], local_files_only=sys.argv[3] == "1",
                        allow_patterns=sys.argv[4:] or None))
"""


def snapshot(cache: Path, repo: str, *patterns: str, endpoint: str, offline: bool) -> str:
    """What the unmodified library says of a repository."""
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT, repo, str(cache), "1" if offline else "0", *patterns],
        env=os.environ
        | {
            "HF_ENDPOINT": "http://127.0.0.1:9" if offline else endpoint,
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files_of(node: Node, source: str) -> set[str]:
    return {file["filename"] for file in node.run("show", source, "--json").json["files"]}


@pytest.fixture
def repo(node: Node, request: pytest.FixtureRequest) -> Repo:
    """A repository as transformers' MusicGen has it, of the test's own."""
    made = node.hub.repo(f"org/{request.node.name.removeprefix('test_')[:60]}")
    made.commit(TRANSFORMERS)
    return made


def test_a_selection_is_what_huggingface_hub_would_have_left(
    node: Node, repo: Repo, tmp_path: Path
) -> None:
    included = [word for pattern in WANTED for word in ("--include", pattern)]
    ran = node.run("warm", repo.repo_id, *included, "--json")
    assert ran.code == 0, ran.err
    mine = node.daemon.cache_dir
    theirs = tmp_path / "theirs"
    snapshot(theirs, repo.repo_id, *WANTED, endpoint=node.hub.endpoint, offline=False)
    assert hub_tree(mine, repo.repo_id) == hub_tree(theirs, repo.repo_id)
    found = snapshot(mine, repo.repo_id, *WANTED, endpoint="", offline=True)
    there = {path.name: path.read_bytes() for path in Path(found).iterdir()}
    assert there == {
        name: data for name, data in TRANSFORMERS.items() if Selection(tuple(WANTED)).has(name)
    }
    assert files_of(node, repo.repo_id) == set(there)


def test_the_whole_repository_may_hold_what_is_no_checkpoint(node: Node, repo: Repo) -> None:
    ran = node.run("warm", repo.repo_id, "--exclude", "*.md", "--exclude", "onnx/", "--json")
    assert ran.code == 0, ran.err
    assert files_of(node, repo.repo_id) == set(TRANSFORMERS) - {"README.md", "onnx/decoder.onnx"}
    with node.daemon.client() as client, pytest.raises(NotACheckpoint):
        client.load_state_dict(repo.repo_id, "ggml/weights.bin")


def test_an_unsafe_pickle_of_a_repository_is_refused_by_its_name(node: Node, repo: Repo) -> None:
    repo.commit({"training_args.bin": UNSAFE})
    ran = node.run("warm", repo.repo_id, "--include", "*", "--json")
    assert ran.problem["code"] == "UnsafeCheckpoint"
    assert "training_args.bin" in ran.problem["detail"]
    assert node.run("show", repo.repo_id).code == 1
    ran = node.run("warm", repo.repo_id, "--include", "*", "--exclude", "training_args.bin")
    assert ran.code == 0, ran.err


def test_a_selection_follows_the_repository_unless_it_is_told_not_to(
    node: Node, repo: Repo
) -> None:
    first = node.run("warm", repo.repo_id, "--include", "*.json", "--json").json["results"][0]
    repo.commit({"added.json": b"[]", "tokenizer.json": None})
    asked = node.hub.count(None, f"*{repo.repo_id}*")
    kept = node.run("warm", repo.repo_id, "--include", "*.json", "--no-refresh", "--json")
    assert kept.json["results"][0]["revision"] == first["revision"]
    assert node.hub.count(None, f"*{repo.repo_id}*") == asked
    more = node.run("warm", repo.repo_id, "--include", "*.model", "--no-refresh", "--json")
    assert more.json["results"][0]["revision"] == first["revision"]
    assert "tokenizer.json" in files_of(node, repo.repo_id)
    newer = node.run("warm", repo.repo_id, "--include", "*.json", "--json").json["results"][0]
    assert newer["revision"] != first["revision"]
    names = files_of(node, repo.repo_id)
    assert "added.json" in names
    assert "tokenizer.json" not in names
    assert "spiece.model" in names  # a new revision replaces all that was published


def test_a_selection_at_a_commit_asks_nobody_the_second_time(node: Node, repo: Repo) -> None:
    commit = repo.resolve("main")
    source = f"{repo.repo_id}@{commit}"
    assert node.run("warm", source, "--include", "*.json").code == 0
    asked = node.hub.count(None, f"*{repo.repo_id}*")
    again = node.run("warm", source, "--include", "*.json", "--json")
    assert again.json["results"][0]["bytes_fetched"] == 0
    assert node.hub.count(None, f"*{repo.repo_id}*") == asked


def test_a_selection_is_evicted_and_queued_like_any_model(node: Node, repo: Repo) -> None:
    assert node.run("warm", repo.repo_id, "--include", "*.json", "--detach").code == 0
    waited = node.run("warm", repo.repo_id, "--include", "*.json")
    assert waited.code == 0, waited.err
    removed = node.run("rm", repo.repo_id, "--json").json
    assert removed["freed_bytes"] == sum(
        len(data) for data in {d for n, d in TRANSFORMERS.items() if n.endswith(".json")}
    )
    assert hub_tree(node.daemon.cache_dir, repo.repo_id) == {}


def test_the_pair_is_warmed_beside_a_selection(node: Node, repo: Repo) -> None:
    repo.commit(EXPORT_FILES)
    assert node.run("warm", repo.repo_id).code == 0
    assert node.run("warm", repo.repo_id, "--include", "*.safetensors").code == 0
    with node.daemon.client() as client:
        assert client.load(repo.repo_id).served_by == "daemon"
    assert files_of(node, repo.repo_id) == {*EXPORT_FILES, "model.safetensors"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("org/model", "--include", "*.nope"), "no file of the repository is like *.nope"),
        (("https://example.com/w.th", "--include", "*"), "only a repository of the Hub"),
        (("org/model", "--include", "*", "--file", "a"), "either named, selected"),
    ],
)
def test_what_cannot_be_selected_is_said(node: Node, arguments: tuple[str, ...], says: str) -> None:
    ran = node.run("warm", *arguments)
    assert ran.code == 1
    assert says in ran.err


def test_check_is_for_names(node: Node) -> None:
    assert node.run("warm", "org/model", "--check", "--include", "*").code == 2


def test_without_the_daemon_a_selection_is_the_same(threaded_hub: TestHub, tmp_path: Path) -> None:
    threaded_hub.repo("org/whole").commit(TRANSFORMERS)
    environment = {
        "HF_ENDPOINT": threaded_hub.endpoint,
        "CRAFTCACHE_INSECURE_HOSTS": "127.0.0.1",
    }
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    arguments = (
        *("--cache-dir", str(mine), "--socket-dir", str(tmp_path)),
        *("warm", "org/whole", "--include", "*.json", "--include", "ggml/*", "--json"),
    )
    ran = run(*arguments, **environment)
    assert ran.code == 0, ran.err
    assert ran.json["results"][0]["served_by"] == "origin"
    snapshot(theirs, "org/whole", "*.json", "ggml/*", endpoint=threaded_hub.endpoint, offline=False)
    assert hub_tree(mine, "org/whole") == hub_tree(theirs, "org/whole")
    asked = threaded_hub.count(None, "*")
    again = run(*arguments, "--no-refresh", **environment)
    assert again.json["results"][0]["served_by"] == "cache"
    assert threaded_hub.count(None, "*") == asked


NAMES = st.text("ab./*?[]", min_size=1, max_size=8)


@given(st.lists(NAMES), st.lists(NAMES, max_size=3), st.lists(NAMES, max_size=3))
def test_patterns_mean_what_they_mean_to_huggingface_hub(
    names: list[str], include: list[str], exclude: list[str]
) -> None:
    from huggingface_hub.utils._paths import filter_repo_objects

    selection = Selection(tuple(include), tuple(exclude))
    theirs = filter_repo_objects(
        names, allow_patterns=include or None, ignore_patterns=exclude or None
    )
    if selection:
        assert [name for name in names if selection.has(name)] == list(theirs)
    else:
        with pytest.raises(NotFound):
            selection.choose(names, source="org/model")
