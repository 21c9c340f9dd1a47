"""Whose fault an error is decides who may go another way: the table of craftcache.errors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from craftcache import Client, errors
from craftcache.errors import CraftcacheError
from tests.support.sockets import FunctionBackend, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from craftcache.wire import Load, Loaded
    from tests.support.hub import TestHub

CLASSES = [getattr(errors, name) for name in errors.__all__]

GOES_ON = {"CraftcacheError", "ProtocolMismatch", "ResourceLimit"}
"""Errors of the daemon at which a worker goes on alone."""

FAULTS = [
    MemoryError(),
    PermissionError(13, "Permission denied", "/cache"),
    FileNotFoundError(2, "No such file or directory", "/cache/.craftcache/staging"),
    OSError(5, "Input/output error"),
    OSError(30, "Read-only file system"),
    KeyError("a bug"),
    AssertionError(),
]
"""What a daemon's own trouble looks like inside it."""


def failing(failure: Exception) -> Callable[[FunctionBackend, Load, Any], Any]:
    async def fail(_backend: FunctionBackend, _request: Load, _report: Any) -> Loaded:
        raise failure

    return fail


@pytest.fixture
def cached(alone: Client) -> Path:
    """A cache directory with the model, verified."""
    assert alone.load("org/model").served_by == "origin"
    return alone.cache_dir


def load(base: Path, cache_dir: Path, failure: Exception, **options: Any) -> str:
    directory = base / "daemon"
    directory.mkdir()
    with (
        serving(directory, FunctionBackend(directory, cold=failing(failure))),
        Client(socket_dir=directory, cache_dir=cache_dir, **options) as client,
    ):
        return client.load("org/model").served_by


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_error_of_the_tree_says_whose_it_is(cls: type[CraftcacheError]) -> None:
    assert cls is CraftcacheError or "blame" in vars(cls)
    assert (cls.blame in ("daemon", "process")) == (cls.__name__ in GOES_ON - {"ProtocolMismatch"})
    row = next(line for line in (errors.__doc__ or "").split("\n") if f"{cls.__name__} " in line)
    assert cls.blame in row
    assert ("goes on alone" in row) == (cls.__name__ in GOES_ON)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_worker_goes_on_alone_only_where_the_daemon_is_to_blame(
    base: Path, cached: Path, cls: type[CraftcacheError]
) -> None:
    if cls.__name__ in GOES_ON:
        assert load(base, cached, cls("trouble")) == "cache"
    else:
        with pytest.raises(cls, match="trouble"):
            load(base, cached, cls("trouble"))


@pytest.mark.parametrize("failure", FAULTS, ids=lambda failure: type(failure).__name__)
def test_trouble_inside_the_daemon_is_its_own(base: Path, cached: Path, failure: Exception) -> None:
    assert load(base, cached, failure) == "cache"


def test_where_nothing_is_cached_the_worker_fetches_and_where_that_is_forbidden_it_says_why(
    base: Path, alone: Client, threaded_hub: TestHub
) -> None:
    failure = CraftcacheError("the inspector was killed")
    with pytest.raises(CraftcacheError, match="the inspector was killed"):
        load(base, base / "empty", failure, fallback="cache")
    assert threaded_hub.count("GET", "/lfs/*") == 0
    os.rename(base / "daemon", base / "daemon-before")
    assert load(base, base / "empty", failure) == "origin"
