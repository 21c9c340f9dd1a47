"""One download in a process of its own; prints what it cost, without the time to import.

Run as ``python -m tests.bench.fetch.child CONTENDER URL SIZE SHA256 DIRECTORY CONNECTIONS``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 4 * 1024 * 1024


def fetch_with_engine(
    url: str, size: int, sha256: str, base: Path, connections: int, *, told: bool = False
) -> float:
    from craftcache.digests import Digest, Promise
    from craftcached.fetch import Engine, EngineSettings, Priority, RemoteFile

    worst_lag = 0.0

    def tell(done: int, _total: int | None) -> None:
        print(done, flush=True)

    def ignore(_done: int, _total: int | None) -> None:
        pass

    async def watch_lag() -> None:
        nonlocal worst_lag
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            worst_lag = max(worst_lag, loop.time() - due)

    async def fetch() -> None:
        settings = EngineSettings(max_connections_per_host=connections)
        file = RemoteFile("bench/model", url, Promise(size, Digest("sha256", sha256)), "bench")
        async with Engine(base, settings, check_url=lambda _: None) as engine:
            lag = asyncio.create_task(watch_lag())
            fetched = await engine.fetch(
                file, priority=Priority.WAITED_FOR, report=tell if told else ignore
            )
            lag.cancel()
            fetched.path.rename(base / "done")

    asyncio.run(fetch())
    return worst_lag


def fetch_with_huggingface_hub(url: str, size: int, sha256: str, base: Path, _: int) -> None:
    from huggingface_hub import hf_hub_download

    path = hf_hub_download("bench/model", url.rpartition("/")[2], cache_dir=base)
    _check_and_sync(Path(path), sha256)


def fetch_with_torch_hub(url: str, size: int, sha256: str, base: Path, _: int) -> None:
    from torch.hub import download_url_to_file

    path = base / "done"
    download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _check_and_sync(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
        os.fsync(file.fileno())
    if digest.hexdigest() != sha256:
        raise SystemExit(f"{path} is damaged")


CONTENDERS: dict[str, Callable[[str, int, str, Path, int], float | None]] = {
    "engine": fetch_with_engine,
    "engine-told": partial(fetch_with_engine, told=True),
    "hf_hub_download": fetch_with_huggingface_hub,
    "torch.hub": fetch_with_torch_hub,
}

IMPORTS = {
    "engine": "craftcached.fetch",
    "engine-told": "craftcached.fetch",
    "hf_hub_download": "huggingface_hub.file_download",
    "torch.hub": "torch.hub",
}


def main(contender: str, url: str, size: str, sha256: str, base: str, connections: str) -> None:
    __import__(IMPORTS[contender])
    began, used = time.perf_counter(), _cpu_seconds()
    lag = CONTENDERS[contender](url, int(size), sha256, Path(base), int(connections))
    cost = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": _cpu_seconds() - used,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "worst_loop_lag": lag,
    }
    print(json.dumps(cost))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])
