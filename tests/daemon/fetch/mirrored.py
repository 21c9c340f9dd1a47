"""A hub, a mirror of it and one node that fetches, for the tests of mirrors."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from craftcached.fetch import Fetched, IntegrityRetry, Mirrors, Priority, RemoteFile
from craftcached.mirror_rule import MirrorRule
from tests.support.fetching import QUICK, rig_at
from tests.support.hub import Generated, TestHub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.hub import Content

SLICE = 128 * 1024
CONTENT = Generated(20 * SLICE + 777, seed=7)
COPY = CONTENT.size


@dataclass
class Fleet:
    """A hub, a mirror of it, and one node."""

    hub: TestHub
    mirror: TestHub
    mirrors: Mirrors
    events: list[tuple[str, dict[str, Any]]]
    fetch: Callable[[RemoteFile], Any]

    def serve(self, file: RemoteFile, content: Content = CONTENT) -> None:
        """Let the mirror have what the hub's CDN has of a repository's file, as it is there."""
        name = file.url.rpartition("/")[2]
        repo_id = "/".join(file.url.split("/")[3:5])
        path = f"/lfs/{repo_id}/{CONTENT.sha256}/{name}"
        self.mirror.files[f"/.cdn/{self.hub.cdn.removeprefix('http://')}{path}"] = content

    @property
    def origin_copies(self) -> float:
        return self.hub.bytes_sent(origin="cdn") / COPY

    @property
    def mirror_copies(self) -> float:
        return self.mirror.bytes_sent(origin="cdn") / COPY

    def told(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


def rule(mirror: TestHub, of: str = "hub", **given: Any) -> MirrorRule:
    table = {"of": of, "url": mirror.cdn, "insecure": True, "slice_bytes": SLICE} | given
    return MirrorRule.parse(table)


@asynccontextmanager
async def fleet_with(
    base: Path, *rules: MirrorRule, hub: TestHub, mirror: TestHub, **given: Any
) -> AsyncIterator[Fleet]:
    events: list[tuple[str, dict[str, Any]]] = []
    mirrors = Mirrors(
        rules,
        hub_endpoint=hub.endpoint,
        tell=lambda event, **fields: events.append((event, fields)),
    )
    settings = replace(QUICK, **given)
    async with rig_at(base, settings, mirrors=mirrors) as rig:
        attempts = IntegrityRetry(rig.engine, mirrors)

        async def fetch(file: RemoteFile) -> Fetched:
            return await attempts.fetch(
                file, priority=Priority.BACKGROUND, report=lambda _done, _total: None
            )

        yield Fleet(hub, mirror, mirrors, events, fetch)
