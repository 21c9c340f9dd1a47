"""The test hub against the unmodified huggingface_hub."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub

LARGE = bytes(range(256)) * 64
FILES = {"state_dict.bin": LARGE, "config.json": b'{"a": 1}'}


def download(
    hub: TestHub, cache: Path, name: str, repo: str = "org/model", **options: Any
) -> bytes:
    path = hf_hub_download(repo, name, endpoint=hub.endpoint, cache_dir=cache, **options)
    with open(path, "rb") as file:
        return file.read()


class TestLibrary:
    """huggingface_hub sees a Hub."""

    @pytest.mark.parametrize("revision", ["main", "side/branch", "v1", None])
    def test_every_kind_of_revision(
        self, threaded_hub: TestHub, tmp_path: Path, revision: str | None
    ) -> None:
        repo = threaded_hub.repo("org/model")
        wanted = repo.commit(FILES)
        repo.tag("v1", wanted)
        repo.branch("side/branch", wanted)
        if revision != "main":
            repo.commit({"state_dict.bin": b"newer", "config.json": None})
        for name, data in FILES.items():
            assert download(threaded_hub, tmp_path, name, revision=revision or wanted) == data
        snapshots = tmp_path / "models--org--model/snapshots"
        assert [path.name for path in snapshots.iterdir()] == [wanted]

    def test_lfs_files_come_from_another_origin_without_the_token(
        self, threaded_hub: TestHub, tmp_path: Path
    ) -> None:
        threaded_hub.repo("org/model", gated=True).commit(FILES)
        threaded_hub.grant("hf_let_in", "org/model")
        assert download(threaded_hub, tmp_path, "state_dict.bin", token="hf_let_in") == LARGE
        assert threaded_hub.count("GET", "/lfs/*/state_dict.bin", origin="cdn") == 1
        assert threaded_hub.bytes_sent(origin="cdn") == len(LARGE)
        assert threaded_hub.matching(origin="hub")[0].authorization == "Bearer hf_let_in"
        assert threaded_hub.tokens_at_cdn == []

    def test_metadata(self, threaded_hub: TestHub) -> None:
        commit = threaded_hub.repo("org/model").commit(FILES)
        for name, etag in (
            ("state_dict.bin", hashlib.sha256(LARGE).hexdigest()),
            ("config.json", hashlib.sha1(b"blob 8\0" + FILES["config.json"]).hexdigest()),
        ):
            url = hf_hub_url("org/model", name, endpoint=threaded_hub.endpoint)
            metadata = get_hf_file_metadata(url)
            assert metadata.etag == etag
            assert metadata.size == len(FILES[name])
            assert metadata.commit_hash == commit

    def test_api(self, threaded_hub: TestHub) -> None:
        repo = threaded_hub.repo("org/model")
        commit = repo.commit(FILES)
        repo.tag("v1", commit)
        api = HfApi(endpoint=threaded_hub.endpoint)
        info = api.model_info("org/model", revision="v1", files_metadata=True)
        assert info.sha == commit
        assert {file.rfilename: file.size for file in info.siblings or []} == {
            name: len(data) for name, data in FILES.items()
        }
        [large] = api.get_paths_info("org/model", ["state_dict.bin", "absent"])
        assert large.lfs.sha256 == hashlib.sha256(LARGE).hexdigest()  # type: ignore[union-attr]
        assert [file.path for file in api.list_repo_tree("org/model")] == list(FILES)
        assert [ref.name for ref in api.list_repo_refs("org/model").tags] == ["v1"]

    def test_a_renamed_repository_answers_under_its_old_name(
        self, threaded_hub: TestHub, tmp_path: Path
    ) -> None:
        commit = threaded_hub.repo("google-t5/t5-base").commit(FILES)
        threaded_hub.rename("t5-base", "google-t5/t5-base")
        for name, data in FILES.items():
            assert download(threaded_hub, tmp_path, name, "t5-base") == data
        assert (tmp_path / "models--t5-base").is_dir()
        assert HfApi(endpoint=threaded_hub.endpoint).model_info("t5-base").sha == commit
        assert threaded_hub.matching("/t5-base/*")[0].status == 307

    def test_what_does_not_exist(self, threaded_hub: TestHub, tmp_path: Path) -> None:
        threaded_hub.repo("org/model").commit(FILES)
        threaded_hub.grant("hf_known")
        for token in (False, "hf_known"):
            with pytest.raises(RepositoryNotFoundError):
                download(threaded_hub, tmp_path, "config.json", "org/absent", token=token)
        with pytest.raises(RevisionNotFoundError):
            download(threaded_hub, tmp_path, "config.json", revision="absent")
        with pytest.raises(EntryNotFoundError):
            download(threaded_hub, tmp_path, "absent.json")
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=threaded_hub.endpoint).model_info("org/absent")

    def test_gated_and_private(self, threaded_hub: TestHub, tmp_path: Path) -> None:
        threaded_hub.repo("org/gated", gated=True).commit(FILES)
        threaded_hub.repo("org/private", private=True).commit(FILES)
        threaded_hub.grant("hf_stranger")
        threaded_hub.grant("hf_friend", "org/gated", "org/private")
        for token, status in ((False, 401), ("hf_stranger", 403)):
            with pytest.raises(GatedRepoError) as refused:
                download(threaded_hub, tmp_path, "config.json", "org/gated", token=token)
            assert refused.value.response.status_code == status
        for token, status in ((False, 401), ("hf_stranger", 404)):
            with pytest.raises(RepositoryNotFoundError) as unseen:
                download(threaded_hub, tmp_path, "config.json", "org/private", token=token)
            assert not isinstance(unseen.value, GatedRepoError)
            assert unseen.value.response.status_code == status
        for repo in ("org/gated", "org/private"):
            data = download(threaded_hub, tmp_path, "config.json", repo, token="hf_friend")
            assert data == FILES["config.json"]

    def test_an_unknown_token_is_refused(self, threaded_hub: TestHub) -> None:
        threaded_hub.repo("org/model").commit(FILES)
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            HfApi(endpoint=threaded_hub.endpoint, token="hf_unknown").model_info("org/model")

    def test_an_older_commit_stays_readable(self, threaded_hub: TestHub, tmp_path: Path) -> None:
        repo = threaded_hub.repo("org/model")
        old = repo.commit(FILES)
        new = repo.commit({"config.json": b"{}"})
        assert old != new
        assert download(threaded_hub, tmp_path, "config.json") == b"{}"
        assert download(threaded_hub, tmp_path, "state_dict.bin") == LARGE
        assert download(threaded_hub, tmp_path, "config.json", revision=old) == b'{"a": 1}'

    def test_a_child_process_needs_only_the_endpoint(self, threaded_hub: TestHub) -> None:
        threaded_hub.repo("org/model").commit(FILES)
        program = (
            "from huggingface_hub import hf_hub_download; "
            "print(hf_hub_download('org/model', 'state_dict.bin'))"
        )
        child = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"HF_ENDPOINT": threaded_hub.endpoint},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        with open(child.stdout.strip(), "rb") as file:
            assert file.read() == LARGE

    @pytest.mark.parametrize(
        "path", ["/", "/org", "/org/model/resolve", "/org/model/resolve/main", "/api/models"]
    )
    def test_paths_that_name_nothing(self, threaded_hub: TestHub, path: str) -> None:
        with pytest.raises(HTTPError, match=r"40[14]"):
            urlopen(threaded_hub.endpoint + path)

    def test_which_files_are_lfs_can_be_chosen(self, threaded_hub: TestHub, tmp_path: Path) -> None:
        repo = threaded_hub.repo("org/model")
        repo.commit({"a.bin": LARGE, "b.json": b"{}"}, lfs={"b.json"})
        assert download(threaded_hub, tmp_path, "a.bin") == LARGE
        assert download(threaded_hub, tmp_path, "b.json") == b"{}"
        assert [request.path[-7:] for request in threaded_hub.matching(origin="cdn")] == ["/b.json"]
