"""One fetch in a process of its own, to be killed: prints each report, then the result."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from craftcache.digests import Digest, Promise
from craftcached.fetch import Engine, EngineSettings, Priority, RemoteFile


async def main(staging: str, url: str, size: str, sha256: str) -> None:
    file = RemoteFile("org/model", url, Promise(int(size), Digest("sha256", sha256)), "k")
    settings = EngineSettings(piece_bytes=256 * 1024, backoff_seconds=0.001)
    async with Engine(Path(staging), settings, check_url=lambda _: None) as engine:
        fetched = await engine.fetch(
            file,
            priority=Priority.BACKGROUND,
            report=lambda done, _: print(done, flush=True),
        )
    print(
        json.dumps(
            {
                "sha256": fetched.digests.sha256,
                "reused": fetched.bytes_reused,
                "fetched": fetched.bytes_fetched,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
