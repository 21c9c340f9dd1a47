"""The ways of a load, in order, without looking at anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.plan import Fallback, plan_load
from craftcache.sources import HubSource, LocalDirectory, LocalFile, UrlSource, WatchSource

if TYPE_CHECKING:
    from craftcache.sources import RemoteSource

REMOTE: list[RemoteSource] = [
    HubSource("org/model"),
    UrlSource("https://host/x.th"),
    WatchSource("run"),
]


def open_ways(source: RemoteSource, fallback: Fallback, sockets: bool, offline: bool) -> list[str]:
    plan = plan_load(source, fallback=fallback, has_sockets=sockets, is_offline=offline)
    assert [step.way for step in plan] == ["daemon", "cache", "origin", "hub cache"]
    return [step.way for step in plan if step.obstacle is None]


@pytest.mark.parametrize("source", REMOTE)
@pytest.mark.parametrize(
    ("fallback", "offline", "ways"),
    [
        ("origin", False, ["cache", "origin", "hub cache"]),
        ("origin", True, ["cache", "hub cache"]),
        ("cache", False, ["cache", "hub cache"]),
        ("cache", True, ["cache", "hub cache"]),
        ("none", False, []),
        ("none", True, []),
    ],
)
def test_the_daemon_comes_first_and_then_what_the_fallback_allows(
    source: RemoteSource, fallback: Fallback, offline: bool, ways: list[str]
) -> None:
    assert open_ways(source, fallback, True, offline) == ["daemon", *ways]
    assert open_ways(source, fallback, False, offline) == ways


@given(st.sampled_from(get_args(Fallback)), st.booleans(), st.booleans())
def test_what_is_local_needs_neither(fallback: Fallback, sockets: bool, offline: bool) -> None:
    def ways(source: LocalFile | LocalDirectory) -> list[str]:
        plan = plan_load(source, fallback=fallback, has_sockets=sockets, is_offline=offline)
        assert all(step.obstacle is None for step in plan)
        return [step.way for step in plan]

    assert ways(LocalFile(Path("x"))) == ["file"]
    assert ways(LocalDirectory(Path("x"))) == ["watched directory", "directory"]
