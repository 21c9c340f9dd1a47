"""Mirrors of URLs, which stand for all below a prefix: what comes from them, and what must not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from craftcache.digests import Digest, Promise
from tests.support.fetching import cdn_file, sha256_of
from tests.support.hub import Generated, ResetConnection, TestHub

from .mirrored import CONTENT, COPY, fleet_with, rule

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_url_below_what_it_stands_for_comes_from_it(
    tmp_path: Path, hub: TestHub, mirror: TestHub
) -> None:
    mirror.files["/w.bin"] = CONTENT
    rules = rule(mirror, of=hub.cdn)
    async with fleet_with(tmp_path, rules, hub=hub, mirror=mirror) as fleet:
        fetched = await fleet.fetch(cdn_file(hub, CONTENT))
        assert (fleet.origin_copies, fleet.mirror_copies) == (0.0, 1.0)
    assert sha256_of(fetched.path) == CONTENT.sha256


async def test_the_origin_may_be_gone(tmp_path: Path, hub: TestHub, mirror: TestHub) -> None:
    mirror.files["/w.bin"] = CONTENT
    rules = rule(mirror, of=hub.cdn)
    hub.inject(ResetConnection(), method=None, times=None)
    async with fleet_with(tmp_path, rules, hub=hub, mirror=mirror) as fleet:
        fetched = await fleet.fetch(cdn_file(hub, CONTENT))
    assert sha256_of(fetched.path) == CONTENT.sha256


@pytest.mark.parametrize(
    "promise",
    [Promise(), Promise(COPY), Promise(COPY, Digest("sha256-prefix", CONTENT.sha256[:8]))],
    ids=["nothing", "size", "eight digits"],
)
async def test_what_could_be_forged_comes_from_the_origin(
    tmp_path: Path, hub: TestHub, mirror: TestHub, promise: Promise
) -> None:
    mirror.files["/w.bin"] = Generated(COPY, seed=8)
    async with fleet_with(tmp_path, rule(mirror, of=hub.cdn), hub=hub, mirror=mirror) as fleet:
        fetched = await fleet.fetch(replace(cdn_file(hub, CONTENT), promise=promise))
    assert sha256_of(fetched.path) == CONTENT.sha256
    assert mirror.requests == []


@pytest.mark.parametrize("trusted", [False, True])
async def test_a_query_goes_to_a_trusted_mirror_only(
    tmp_path: Path, hub: TestHub, mirror: TestHub, trusted: bool
) -> None:
    mirror.files["/w.bin"] = CONTENT
    rules = rule(mirror, of=hub.cdn, forward_token=trusted)
    async with fleet_with(tmp_path, rules, hub=hub, mirror=mirror) as fleet:
        file = cdn_file(hub, CONTENT)
        await fleet.fetch(replace(file, url=f"{file.url}?key=secret"))
    assert bool(mirror.requests) is trusted


async def test_a_mirror_stands_for_nothing_beside_its_prefix(
    tmp_path: Path, hub: TestHub, mirror: TestHub
) -> None:
    rules = rule(mirror, of=f"{hub.cdn}/exports/")
    async with fleet_with(tmp_path, rules, hub=hub, mirror=mirror) as fleet:
        for number, path in enumerate(("/exports", "/exports2/w.bin", "/w.bin")):
            await fleet.fetch(cdn_file(hub, CONTENT, path, key=f"k{number}"))
    assert mirror.requests == []
