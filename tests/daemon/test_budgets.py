"""What one user may have of the daemon, so that there is some left for the next."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from craftcache.durations import DAY_SECONDS
from craftcache.errors import BudgetExceeded
from craftcached.budgets import BudgetLimits, Budgets, UserBudget
from craftcached.database import Database
from tests.support.api import Api
from tests.support.clients import as_root
from tests.support.daemons import DaemonProcess
from tests.support.hub import Data, Gate, Stall
from tests.support.published import Clock
from tests.support.users import User, open_to_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.hub import TestHub

ALICE, BOB, ROOT = 12001, 12002, 0
FILES = ["weights.txt"]


@asynccontextmanager
async def budgets(base: Path, clock: Clock | None = None, **limits: int) -> AsyncIterator[Budgets]:
    async with (
        Database(base / "state") as records,
        Budgets(
            records,
            BudgetLimits(**limits),
            clock=clock or Clock(),
            unlimited=frozenset({ROOT}),
        ) as made,
    ):
        yield made


async def test_requests_at_once_are_counted_for_each_user(tmp_path: Path) -> None:
    async with budgets(tmp_path, requests=2) as made:
        with made.request(ALICE), made.request(ALICE):
            with pytest.raises(BudgetExceeded, match="uid 12001") as refused, made.request(ALICE):
                pass
            assert refused.value.retryable
            assert refused.value.retry_after
            assert "max_requests_per_uid" in str(refused.value.hint)
            with made.request(BOB), ExitStack() as many:
                for _ in range(9):
                    many.enter_context(made.request(ROOT))
            assert made.report()[1] == UserBudget(ALICE, 2, 2, 0)
        with made.request(ALICE):
            pass


async def test_requests_in_a_minute_are_counted_for_each_user(tmp_path: Path) -> None:
    clock = Clock()
    async with budgets(tmp_path, clock, requests_per_minute=3) as made:
        for _ in range(3):
            clock.now += 10
            with made.request(ALICE):
                pass
        with pytest.raises(BudgetExceeded) as refused, made.request(ALICE):
            pass
        assert refused.value.retry_after == 40
        with made.request(BOB):
            pass
        clock.now += refused.value.retry_after
        with made.request(ALICE):
            pass
        clock.now += 100
        assert made.report() == []


async def test_the_bytes_of_a_day_outlive_a_restart_and_not_the_day(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = 20_000 * DAY_SECONDS + 3600.0
    async with budgets(tmp_path, clock, fetched_bytes_per_day=100) as made:
        async with made.fetching(ALICE, 60, lambda: 50, source="org/a"):
            assert made.report()[0].fetched_bytes_today == 60
            with pytest.raises(BudgetExceeded, match="org/b") as refused:
                async with made.fetching(ALICE, 41, lambda: 0, source="org/b"):
                    pass
            assert refused.value.retry_after == DAY_SECONDS - 3600
            async with made.fetching(BOB, 100, lambda: 100, source="org/b"):
                pass
        async with made.fetching(None, 1000, lambda: 1000, source="org/own"):
            pass
    async with budgets(tmp_path, clock, fetched_bytes_per_day=100) as made:
        assert made.report() == [UserBudget(ALICE, 0, 0, 50), UserBudget(BOB, 0, 0, 100)]
        with pytest.raises(BudgetExceeded):
            async with made.fetching(BOB, 0, lambda: 0, source="of unknown size"):
                pass
        async with made.fetching(ALICE, 0, lambda: 70, source="of unknown size"):
            pass
        clock.now += DAY_SECONDS
        assert made.report() == []
        async with made.fetching(BOB, 100, lambda: 1, source="org/b"):
            pass
    async with budgets(tmp_path, clock) as made:
        assert made.report() == [UserBudget(BOB, 0, 0, 1)]
        async with made.fetching(BOB, 10**15, lambda: 0, source="no limit"):
            pass


async def test_queued_warms_are_counted_for_each_user(tmp_path: Path) -> None:
    async with budgets(tmp_path, queued=2) as made:
        made.check_queued(ALICE, 2)
        with pytest.raises(BudgetExceeded):
            made.check_queued(ALICE, 3)
        made.check_queued(ROOT, 1000)


@pytest.fixture
def shared(base: Path, threaded_hub: TestHub) -> Iterator[DaemonProcess]:
    """A daemon that two real users share, with tight budgets."""
    for name in ("a", "b", "c", "d"):
        threaded_hub.repo(f"org/{name}").commit({FILES[0]: Data(name.encode() * 1000)}, lfs=FILES)
    open_to_all(base)
    with DaemonProcess(
        base,
        *("--admin-socket-mode", "666"),
        *("--max-daily-bytes-per-uid", "2500"),
        *("--max-queued-per-uid", "1"),
        *("--max-requests-per-uid", "1"),
        HF_ENDPOINT=threaded_hub.endpoint,
    ) as running:
        yield running


@as_root
def test_of_two_real_users_each_has_a_share_of_its_own(
    shared: DaemonProcess, threaded_hub: TestHub
) -> None:
    alice, bob = User(ALICE, shared), User(BOB, shared)

    def warm(user: User, name: str, **more: object) -> tuple[int, str]:
        body = {"sources": [f"org/{name}"], "files": FILES} | more
        status, answer = user.ask("POST", "/warm", body)
        return status, answer.get("code", "")

    assert warm(alice, "a") == (200, "")
    assert warm(alice, "b") == (200, "")
    status, problem = alice.ask("POST", "/warm", {"sources": ["org/c"], "files": FILES})
    assert (status, problem["code"], problem["retryable"]) == (429, "BudgetExceeded", True)
    assert 0 < problem["retry_after"] <= DAY_SECONDS
    assert warm(alice, "a", refresh=False) == (200, "")  # what is here costs nothing
    assert warm(bob, "c", hold=3600) == (200, "")
    assert bob.ask("GET", "/models/org%2Fc")[1]["held_until"]
    # Administration is not theirs.
    assert alice.ask("DELETE", "/models/org%2Fc")[0] == 403
    assert alice.ask("PUT", "/pins/org%2Fc", {})[0] == 403
    assert alice.ask("POST", "/evict", {"bytes": 1})[0] == 403
    gate = Gate()
    threaded_hub.inject(Stall(gate), path="*", method="HEAD", origin="hub", times=None)
    assert warm(bob, "d", wait=False) == (202, "")
    assert warm(bob, "d", wait=False) == (202, "")  # the same is one
    assert warm(bob, "a", wait=False) == (429, "BudgetExceeded")
    assert warm(alice, "a", wait=False) == (202, "")
    with Api(shared.socket_dir) as api:
        users = {user["uid"]: user for user in api.get("/users")["users"]}
        limits = api.get("/users")["limits"]
    assert users[ALICE]["fetched_bytes_today"] == 2000
    assert users[BOB]["fetched_bytes_today"] in {1000, 2000}  # with what is on its way
    assert (users[BOB]["queued"], users[ALICE]["queued"]) == (1, 1)
    assert (users[BOB]["held"], users[ALICE]["held"]) == (1, 0)
    assert limits == {
        "requests": 1,
        "requests_per_minute": 0,
        "fetched_bytes_per_day": 2500,
        "queued": 1,
    }
    gate.open()


@as_root
def test_a_plan_counts_as_a_request_of_its_user(base: Path, threaded_hub: TestHub) -> None:
    threaded_hub.repo("org/a").commit({FILES[0]: Data(b"a")}, lfs=FILES)
    open_to_all(base)
    arguments = ("--admin-socket-mode", "666", "--max-requests-per-minute-per-uid", "1")
    with DaemonProcess(base, *arguments, HF_ENDPOINT=threaded_hub.endpoint) as running:
        plan = {"sources": ["org/a"], "files": FILES}
        assert User(ALICE, running).ask("POST", "/plan", plan)[0] == 200
        status, problem = User(ALICE, running).ask("POST", "/plan", plan)
        assert (status, problem["code"]) == (429, "BudgetExceeded")
        assert User(BOB, running).ask("POST", "/plan", plan)[0] == 200
