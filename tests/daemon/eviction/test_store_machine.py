"""Any sequence of what users and administrators do to a store, with restarts between any two steps.

``STORE_MACHINE_EXAMPLES=1000`` runs as many sequences instead of a few.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from craftcache.cache.underway import note_underway
from craftcache.errors import PolicyDenied, StorageFull
from tests.support.published import Clock, Keeping, keeping, key, source

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

KB = 1000
LIMIT = 8 * KB
EXAMPLES = int(os.environ.get("STORE_MACHINE_EXAMPLES", "12"))

NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
SIZES = st.sampled_from([KB, 2 * KB, 3 * KB, 5 * KB, 9 * KB])
SECONDS = st.sampled_from([50.0, 500.0, 5000.0])
UIDS = st.sampled_from([1000, 1001])


@dataclass
class Expected:
    """What a model must be.

    Attributes:
        content: Bytes of its file.
        pinned_until: When its pin ends; 0 for none.
        held_until: When its last hold ends; 0 for none.
    """

    content: bytes
    pinned_until: float = 0.0
    held_until: float = 0.0

    def is_protected(self, now: float) -> bool:
        return now < self.pinned_until or now < self.held_until


class StoreMachine(RuleBasedStateMachine):
    """A store with its quota, against a simple account of what must be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory(prefix="cc-machine-")
        self.clock = Clock()
        self.models: dict[str, Expected] = {}
        self.opened: dict[str, list[int]] = {}
        self.serial = 0
        self.open_parts()

    # --- The machine's own life ---

    def run_now(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def open_parts(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.parts: Keeping = self.run_now(
            self.stack.enter_async_context(
                keeping(Path(self.directory.name), max_bytes=LIMIT, clock=self.clock)
            )
        )

    def teardown(self) -> None:
        for descriptors in self.opened.values():
            for descriptor in descriptors:
                os.close(descriptor)
        self.run_now(self.stack.aclose())
        self.runner.close()
        self.directory.cleanup()

    def names(self) -> set[str]:
        return self.run_now(self.parts.names())

    def is_in_use(self, name: str) -> bool:
        return bool(self.opened.get(name))

    def settle(self, gone: set[str]) -> None:
        """Check that what went might go, and forget it."""
        for name in gone:
            assert not self.models[name].is_protected(self.clock.now), name
            assert not self.is_in_use(name), name
            del self.models[name]

    # --- What happens ---

    @rule(name=NAMES, size=SIZES)
    def bring(self, name: str, size: int) -> None:
        """Fetch a model, or a new revision of it: admitted, written, published."""
        self.serial += 1
        content = f"{self.serial} ".encode() * size
        content = content[:size]
        before = self.names()

        async def bring() -> None:
            parts = self.parts
            with parts.surveyor.needing(key(name)):
                async with parts.space.claiming({"k": (size, 0)}, source=name):
                    await parts.space.reserve("k", size, source=name)
                    parts.space.written("k", size)
                    past = await parts.store.manifest_at(key(name))
                    manifest = await parts.publish(name, file=content)
                    if past is not None and past.revision != manifest.revision:
                        note_underway(parts.store.cache, key(name), past)
                    parts.space.release("k")

        refusal: StorageFull | None = None
        try:
            self.run_now(bring())
        except StorageFull as error:
            refusal = error
        if refusal is not None:
            assert refusal.missing_bytes > 0
            assert self.names() == before, "something was evicted for what was refused"
            assert not (refusal.retryable and size > LIMIT)
            return
        assert size <= LIMIT
        self.settle(before - self.names())
        earlier = self.models.get(name)
        self.models[name] = Expected(
            content,
            earlier.pinned_until if earlier else self.pin_of(name),
            earlier.held_until if earlier else 0.0,
        )
        for descriptor in self.opened.pop(name, []):
            os.close(descriptor)

    def pin_of(self, name: str) -> float:
        """When the pin of an absent model ends: it protects the name."""
        pin = self.parts.pins.find(key(name))
        return 0.0 if pin is None else pin.expires_at or float("inf")

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        name = self.any_model(data)
        self.clock.now += 1
        self.parts.uses.note(key(name))

    @precondition(lambda self: self.models)
    @rule(data=st.data(), seconds=st.none() | SECONDS)
    def pin(self, data: st.DataObject, seconds: float | None) -> None:
        name = self.any_model(data)
        self.run_now(self.parts.pins.pin(source(name), lock=False, expires_in=seconds))
        self.models[name].pinned_until = (
            float("inf") if seconds is None else self.clock.now + seconds
        )

    @precondition(lambda self: self.models)
    @rule(data=st.data(), seconds=SECONDS, uid=UIDS)
    def hold(self, data: st.DataObject, seconds: float, uid: int) -> None:
        model = self.models[name := self.any_model(data)]
        self.run_now(self.parts.holds.hold(source(name), uid, seconds))
        model.held_until = max(model.held_until, self.clock.now + seconds)

    @precondition(lambda self: any(self.is_pinned(name) for name in self.models))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        pinned = sorted(name for name in self.models if self.is_pinned(name))
        name = data.draw(st.sampled_from(pinned))
        self.run_now(self.parts.pins.unpin(source(name)))
        self.models[name].pinned_until = 0.0

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        """A worker maps the file, and has it for a while."""
        name = self.any_model(data)
        manifest = self.run_now(self.parts.store.manifest_at(key(name)))
        assert manifest is not None
        descriptor = os.open(self.parts.path(manifest), os.O_RDONLY)
        self.opened.setdefault(name, []).append(descriptor)

    @precondition(lambda self: any(self.opened.values()))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, each in self.opened.items() if each)))
        os.close(self.opened[name].pop())

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """An administrator removes a model: a pin forbids it, a hold or a use does not."""
        name = self.any_model(data)
        parts = self.parts

        async def remove() -> None:
            await parts.pins.check_unpinned(source(name))
            await parts.store.remove(key(name))
            await parts.uses.forget(key(name))
            await parts.holds.forget(key(name))

        try:
            self.run_now(remove())
        except PolicyDenied:
            assert self.is_pinned(name)
            return
        assert not self.is_pinned(name)
        del self.models[name]
        for descriptor in self.opened.pop(name, []):
            os.close(descriptor)

    @rule(wanted=st.none() | SIZES, dry_run=st.booleans())
    def evict(self, wanted: int | None, dry_run: bool) -> None:
        before = self.names()
        eviction = self.run_now(self.parts.evictor.evict(wanted, dry_run=dry_run))
        after = self.names()
        if dry_run:
            assert after == before
        self.settle(before - after)
        assert eviction.missing_bytes == max(0, (wanted or 0) - eviction.freed_bytes)

    @rule()
    def do_maintenance(self) -> None:
        before = self.names()
        self.run_now(self.maintain())
        self.settle(before - self.names())

    async def maintain(self) -> None:
        await self.parts.pins.apply_locks()
        await self.parts.holds.drop_expired()
        await self.parts.evictor.trim()
        await self.parts.uses.save()

    @rule(seconds=st.sampled_from([1.0, 100.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def restart(self) -> None:
        self.run_now(self.stack.aclose())
        self.open_parts()

    def any_model(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.models)))

    def is_pinned(self, name: str) -> bool:
        return self.clock.now < self.models[name].pinned_until

    # --- What holds at every moment ---

    @invariant()
    def the_quota_is_kept(self) -> None:
        report = self.run_now(self.parts.evictor.report())
        assert report.used + report.claimed <= LIMIT
        assert report.claimed == 0

    @invariant()
    def nothing_is_lost_and_nothing_is_wrong(self) -> None:
        published = {m.source.rpartition("/")[2]: m for m in self.run_now(self.manifests())}
        assert set(published) == set(self.models)
        for name, manifest in published.items():
            assert self.parts.path(manifest).read_bytes() == self.models[name].content

    async def manifests(self) -> list[Any]:
        return await self.parts.store.manifests()

    @invariant()
    def pins_and_holds_are_what_was_said(self) -> None:
        for name, model in self.models.items():
            assert (self.parts.pins.find(key(name)) is not None) == self.is_pinned(name)
            held = self.parts.holds.until(key(name))
            assert held == (model.held_until if self.clock.now < model.held_until else None)

    @invariant()
    def nothing_is_left_in_staging(self) -> None:
        assert not [path for path in self.parts.store.cache.staging.rglob("*") if path.is_file()]


@pytest.mark.timeout(400)  # a hundred restarts, on a machine that may be busy
def test_any_sequence_with_restarts_keeps_the_quota_and_every_word_given() -> None:
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
