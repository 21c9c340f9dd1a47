"""Where the demonstration's source comes from: the sample on a hub of ours, or the real origin."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.demo.sample import make_sample

from .hub import DemoHub, HubStatistics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

__all__ = ["DemoOrigin", "sample_origin", "SAMPLE"]

SAMPLE = "demo/musicgen-sample"
"""The Hub id of the sample export."""


@dataclass(frozen=True, slots=True)
class DemoOrigin:
    """A source, and the facts about it that are known beforehand.

    Attributes:
        source: Name of the source.
        hub: The demo's own hub that serves it, which counts requests and bytes; else None.
        size: Bytes of its files, where known.
        digest: Digest of its tensors as torch.load returns them, where known.
        environment: Environment variables by which daemon and workers find it.
    """

    source: str
    hub: DemoHub | None = None
    size: int | None = None
    digest: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def statistics(self) -> HubStatistics | None:
        """What the hub has done so far; None where it is not ours."""
        return self.hub.statistics() if self.hub else None

    def since(self, before: HubStatistics | None) -> HubStatistics | None:
        """What the hub has done since ``before``; None where it is not ours."""
        now = self.statistics()
        if now is None or before is None:
            return None
        return HubStatistics(now.requests - before.requests, now.bytes_sent - before.bytes_sent)


@asynccontextmanager
async def sample_origin(directory: Path) -> AsyncIterator[DemoOrigin]:
    """Make the sample export in ``directory`` and serve it while the context lasts."""
    directory.mkdir()
    size, expected = await asyncio.to_thread(make_sample, directory)
    async with await asyncio.to_thread(DemoHub, SAMPLE, directory) as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # no token of the user's for a hub of ours
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        yield DemoOrigin(SAMPLE, hub, size, expected, environment)
