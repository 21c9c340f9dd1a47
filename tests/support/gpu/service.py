"""The service of a GPU that is emulated by memory files, as a program; argument: its settings."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path

from craftcached.gpu.process import run
from craftcached.settings import Settings
from craftcached.systemd import Notifier
from tests.support.gpu.memfd import MemfdMemory


def main() -> None:
    given = json.loads(sys.argv[1])
    socket_dir = Path(given["socket_dir"])
    settings = Settings(
        cache_dir=socket_dir,
        socket_dir=socket_dir,
        state_dir=socket_dir,
        gpu_max_bytes=given.get("max_bytes", 0),
        gpu_ttl=given.get("ttl", 600.0),
        drain_seconds=0.0,
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    memory = MemfdMemory(
        total_bytes=given.get("total_bytes", 1 << 40), is_lost=given.get("is_lost", False)
    )
    asyncio.run(run(memory, settings, Notifier.of(os.environ)))


if __name__ == "__main__":
    main()
