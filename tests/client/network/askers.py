"""All that asks an origin for something: the daemon and a worker, for bytes and about them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from craftcache.daemon.transport import Cancellation
from craftcache.digests import Promise
from craftcache.fallback.stream import Download, download
from craftcache.network.token import authorization
from craftcache.origins.hub import HubApi
from craftcache.origins.policy import UrlPolicy
from craftcache.sources import HubSource, UrlSource
from craftcached.fetch import RemoteFile
from craftcached.warm.url_origin import UrlOrigin
from tests.support.fetching import rig_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["ASKERS", "Asker", "REPO", "FILE", "CONTENT", "PATH"]

REPO, FILE, PATH = "org/model", "state_dict.bin", "/w.bin"

CONTENT = b"what the origin has" * 100

Asker: TypeAlias = "Callable[[str, Path, str | None], object]"
"""Asks a server, by its base URL; with a directory, and a token where the request carries one."""


def daemon_bytes(base: str, directory: Path, token: str | None = None) -> bytes:
    """The daemon's engine fetches a file."""
    url = base + PATH
    file = RemoteFile("source", url, Promise(), "k", authorization(token))

    async def fetch() -> bytes:
        async with rig_at(directory) as rig:
            return (await rig.fetch(file)).path.read_bytes()

    return asyncio.run(fetch())


def worker_bytes(base: str, directory: Path, token: str | None = None) -> bytes:
    """A worker on its own fetches a file."""
    directory.mkdir(exist_ok=True)
    downloaded = download(
        Download("source", base + PATH, Promise(), authorization(token)),
        staging=directory,
        check_url=lambda _: None,
        report=lambda *_: None,
        cancellation=Cancellation(),
    )
    return downloaded.file.path.read_bytes()


def metadata(base: str, directory: Path, token: str | None = None) -> object:
    """Both ask the Hub about a file."""
    return HubApi(base, token, 10).describe(HubSource(REPO), FILE, "main").promise.size


def listing(base: str, directory: Path, token: str | None = None) -> object:
    """The daemon asks the Hub which files there are."""
    return HubApi(base, token, 10).filenames(HubSource(REPO))


def validator(base: str, directory: Path, token: str | None = None) -> object:
    """The daemon asks a URL whether its file has changed."""
    hosts = frozenset({"127.0.0.1", "localhost", "cdn.test"})
    policy = UrlPolicy(insecure_hosts=hosts, hub_endpoint="https://hub.invalid")
    return asyncio.run(UrlOrigin(UrlSource(base + PATH), policy).etag("w.bin"))


ASKERS: dict[str, tuple[str, Asker]] = {
    "daemon-bytes": ("cdn.test", daemon_bytes),
    "worker-bytes": ("cdn.test", worker_bytes),
    "metadata": ("hub.test", metadata),
    "listing": ("hub.test", listing),
    "validator": ("cdn.test", validator),
}
"""By name, with the host that is asked."""
