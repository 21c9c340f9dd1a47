"""No wrong tensor, whatever other hands do to any file of the cache directory."""

from __future__ import annotations

import os
import random
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING

import pytest

from craftcache import Client
from tests.client.cache.mutations import mutate
from tests.client.cache.outcomes import export_bytes, outcome, settled, write_export
from tests.support.daemons import DaemonProcess
from tests.support.hub import Data

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub

MUTATIONS = int(os.environ.get("CACHE_MUTATIONS", "200"))
"""Of the test; more of them may be asked for by hand."""

SEED = int(os.environ.get("CACHE_MUTATIONS_SEED", "15"))

RESTART_EVERY = 50
"""Mutations after which the daemon begins anew, with nothing in memory."""


@pytest.fixture
def sources(base: Path, threaded_hub: TestHub) -> dict[str, float]:
    """One source of each kind, and the value that its tensors hold."""
    threaded_hub.repo("org/model").commit(export_bytes(1.0))
    threaded_hub.files |= {f"/m/{n}": Data(content) for n, content in export_bytes(2.0).items()}
    write_export(base / "export", 3.0)
    return {"org/model": 1.0, threaded_hub.cdn_url("/m/"): 2.0, "watch:run": 3.0}


@pytest.mark.timeout(60 + 3 * MUTATIONS)
def test_no_tensor_is_wrong_whatever_is_done_to_the_cache(
    base: Path, threaded_hub: TestHub, sources: dict[str, float]
) -> None:
    config = base / "config.toml"
    config.write_text(
        f'[[watches]]\nname = "run"\ndirectory = "{base / "export"}"\nsettle = 1\nkeep = 1\n'
    )
    chance = random.Random(SEED)
    outcomes: Counter[str] = Counter()
    wrong = []
    with DaemonProcess(base, "--config", str(config), HF_ENDPOINT=threaded_hub.endpoint) as daemon:
        with daemon.client() as client:
            assert not any(
                outcome(client, source, value).is_wrong
                for source, value in sources.items()
                if not source.startswith("watch:")
            )
        settled(daemon, "run")
        for number in range(MUTATIONS):
            done = mutate(chance, daemon.cache_dir)
            with (
                Client(
                    socket_dir=base / "none", cache_dir=daemon.cache_dir, fallback="cache"
                ) as alone,
                daemon.client() as served,
            ):
                for client, (source, value) in product((alone, served), sources.items()):
                    got = outcome(client, source, value)
                    outcomes[got.served_by] += 1
                    if got.is_wrong:
                        wrong.append((number, done, source, got.served_by))
            if number % RESTART_EVERY == RESTART_EVERY - 1:
                daemon.terminate()
                daemon.start()
    print(outcomes)
    assert wrong == []
    assert outcomes["daemon"] > 2 * MUTATIONS  # of three
    assert outcomes["cache"] > MUTATIONS
