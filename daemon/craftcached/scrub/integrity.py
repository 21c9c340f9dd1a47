"""What keeps cached files intact: the scrub, verifications, the quarantine and fs-verity."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from craftcached.store.quarantine import Quarantine
from craftcached.store.verity import Verity

from .background import Scrub
from .examiner import Examiner
from .verifications import Verifications

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcached.database import Database
    from craftcached.events import Events
    from craftcached.settings import Settings
    from craftcached.store.store import Store

    from .examiner import Mender

__all__ = ["Integrity"]


class Integrity:
    """These parts, opened, configured and closed together; an async context manager.

    Args:
        settings: The daemon's settings.
        store: The published models.
        records: The database.
        mender: Fetches anew.
        events: The event stream.
        is_busy: Returns whether warms run, which go before the scrub.

    Attributes:
        scrub: The background pass over all that is cached.
        verifications: The verifications on demand.
        quarantine: What turned out wrong.
        verity: Whether the kernel enforces the content of published files.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        records: Database,
        mender: Mender,
        events: Events,
        is_busy: Callable[[], bool],
    ) -> None:
        self.verity = Verity(store.cache)
        examiner = Examiner(
            store=store, mender=mender, records=records, events=events, verity=self.verity
        )
        self.verifications = Verifications(examiner, events)
        self.quarantine = Quarantine(
            store, days=settings.quarantine_days, max_bytes=settings.quarantine_bytes
        )
        self.scrub = Scrub(
            store=store,
            records=records,
            examiner=examiner,
            quarantine=self.quarantine,
            days=settings.scrub_days,
            is_busy=lambda: is_busy() or self.verifications.is_running,
        )
        self._life = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as life:
            life.callback(self.verity.close)
            await self.verity.open()
            life.push_async_callback(self.verifications.close)
            await life.enter_async_context(self.scrub)
            self._life = life.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._life.aclose()

    def configure(self, settings: Settings) -> None:
        """Use these settings from now on."""
        self.scrub.configure(settings.scrub_days)
        self.quarantine.days = settings.quarantine_days
        self.quarantine.max_bytes = settings.quarantine_bytes
