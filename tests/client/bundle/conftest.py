"""A node whose cache holds models that need others, and other nodes beside it."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.checkpoints import saved
from tests.support.command import Node
from tests.support.daemons import DaemonProcess
from tests.support.dependencies import REFERRING, host_codec, host_t5, seen_before
from tests.support.hub import Data, hub_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import Repo

WEIGHTS = saved({"best_state": {}})
SOURCES = ("org/model", "t5-base", "facebook/encodec_32khz")
URL_PATH = f"/plain/weights-{hashlib.sha256(WEIGHTS).hexdigest()[:8]}.th"


@dataclass(frozen=True)
class WarmNode(Node):
    """A node, and the repositories that its Hub has."""

    model: Repo
    t5: Repo


@pytest.fixture(scope="package")
def node() -> Iterator[WarmNode]:
    """Has ``org/model``, which needs t5-base and a codec, and a URL's file."""
    with tempfile.TemporaryDirectory(prefix="cc-") as base, hub_in_thread() as hub:
        seen_before(Path(base) / "cache")
        t5 = host_t5(hub)
        host_codec(hub)
        model = hub.repo("org/model")
        model.commit({**REFERRING, "README.md": b"# model\n"})
        hub.files[URL_PATH] = Data(WEIGHTS)
        with DaemonProcess(
            Path(base), "--insecure-host", "127.0.0.1", HF_ENDPOINT=hub.endpoint
        ) as daemon:
            node = WarmNode(hub, daemon, model, t5)
            for source in ("org/model", hub.cdn_url(URL_PATH)):
                ran = node.run("warm", source)
                assert ran.code == 0, ran.err
            yield node


@pytest.fixture
def url(node: Node) -> str:
    """The URL that is warm."""
    return node.hub.cdn_url(URL_PATH)


@pytest.fixture
def other(node: Node) -> Iterator[Node]:
    """A daemon with an empty cache at the same hub."""
    with tempfile.TemporaryDirectory(prefix="cc-") as base:
        seen_before(Path(base) / "cache")
        with DaemonProcess(
            Path(base), "--insecure-host", "127.0.0.1", HF_ENDPOINT=node.hub.endpoint
        ) as daemon:
            yield Node(node.hub, daemon)


@pytest.fixture(scope="package")
def bundle(node: WarmNode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the model and what it needs."""
    path = tmp_path_factory.mktemp("bundle") / "models.tar"
    ran = node.run("bundle", "create", str(path), "org/model", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["bytes"] == path.stat().st_size
    assert set(ran.json["models"]) == set(SOURCES)
    return path


def unpacked_files(cache: Path) -> list[Path]:
    """What a daemon has in staging of bundles."""
    staging = cache / ".craftcache" / "staging"
    return [*staging.rglob("*.tmp"), *staging.glob("bundle/*")]


@dataclass(frozen=True)
class Member:
    """A member of a tar."""

    info: tarfile.TarInfo
    content: bytes


def members(bundle: Path) -> list[Member]:
    """All members of a bundle, in order."""
    with tarfile.open(bundle) as tar:
        found = []
        for info in tar:
            content = tar.extractfile(info)
            assert content is not None
            found.append(Member(info, content.read()))
        return found
