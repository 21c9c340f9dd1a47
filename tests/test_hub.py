"""The test hub against the unmodified huggingface_hub and a plain HTTP client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from huggingface_hub import HfApi, hf_hub_download

if TYPE_CHECKING:
    from pathlib import Path

    from hub import TestHub


def test_downloads_lfs_and_small_files(threaded_hub: TestHub, tmp_path: Path) -> None:
    files = {"state_dict.bin": b"weights" * 1000, "config.json": b"{}"}
    commit = threaded_hub.repo("org/model").commit(files)
    for name, data in files.items():
        path = hf_hub_download(
            "org/model", name, endpoint=threaded_hub.endpoint, cache_dir=tmp_path
        )
        assert f"/snapshots/{commit}/" in path
        with open(path, "rb") as file:
            assert file.read() == data
    assert HfApi(endpoint=threaded_hub.endpoint).model_info("org/model").sha == commit
