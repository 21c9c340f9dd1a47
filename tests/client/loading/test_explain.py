"""What explain says without a daemon is what a load then does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import hf_hub_download

from craftcache import Client
from craftcache.errors import CraftcacheError
from tests.support.daemons import EXPORT_FILES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcache.plan import Fallback
    from tests.support.hub import Repo


def warmed(cache: Path) -> None:
    Client(cache_dir=cache).warm("org/model")


def downloaded(cache: Path) -> None:
    for name in EXPORT_FILES:
        hf_hub_download("org/model", name, cache_dir=cache, endpoint=os.environ["HF_ENDPOINT"])


def empty(_cache: Path) -> None:
    """Nothing is there."""


@pytest.mark.parametrize("is_offline", [False, True], ids=["online", "offline"])
@pytest.mark.parametrize("fallback", ["origin", "cache", "none"])
@pytest.mark.parametrize("fill", [empty, downloaded, warmed])
@pytest.mark.usefixtures("hub_endpoint")
def test_a_load_does_what_is_explained(
    base: Path,
    export_repo: Repo,
    monkeypatch: pytest.MonkeyPatch,
    fill: Callable[[Path], None],
    fallback: Fallback,
    is_offline: bool,
) -> None:
    fill(base / "cache")
    if is_offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with Client(socket_dir=base / "none", cache_dir=base / "cache", fallback=fallback) as client:
        explained = client.explain("org/model")
        try:
            served_by = client.load("org/model").served_by
        except CraftcacheError:
            served_by = None
    assert explained.served_by == served_by, explained.steps
    assert explained.revision in (None, export_repo.resolve("main"))
