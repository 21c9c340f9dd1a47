"""One process of the soak: clients of one user, each a thread that does one thing after another.

Started by ``tests.soak.run`` as root; it imports and loads once, so that nothing is left to be
imported, and is another user from then on. Its last line says how often what happened.
"""

from __future__ import annotations

import encodings
import importlib
import json
import os
import pkgutil
import random
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import craftcache
from craftcache import Client
from craftcache.daemon.admin import AdminClient
from craftcache.errors import (
    CraftcacheError,
    IntegrityError,
    NotACheckpoint,
    StorageFull,
    UnsafeCheckpoint,
)
from tests.soak.content import WATCHED, check

if TYPE_CHECKING:
    from collections.abc import Callable

    from craftcache.plan import Fallback

NOT_FOR_IMPORT = (
    "craftcache.audiocraft",
    "craftcache.cli.__main__",
    "encodings.mbcs",
    "encodings.oem",
)
"""What takes AudioCraft, starts when it is imported, or is Windows's."""

ALWAYS_WRONG = (IntegrityError, UnsafeCheckpoint, NotACheckpoint)
"""Errors that nothing of what goes on here excuses."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a process is told, as JSON on its command line.

    Attributes:
        socket_dir: Of the daemon.
        cache_dir: Of the daemon, which all users may read.
        uid: User to be.
        clients: Number of threads.
        models: Number of models that there are.
        pinned: Number of the model whose pin must not be lost.
        seconds: How long to go on.
        seed: Of the chances.
    """

    socket_dir: str
    cache_dir: str
    uid: int
    clients: int
    models: int
    pinned: int
    seconds: float
    seed: int


class SoakClient:
    """One client; ``run`` goes on until its time is over."""

    def __init__(self, orders: Orders, number: int, seen: Counter[str]) -> None:
        self._orders = orders
        self._chance = random.Random(orders.seed * 1000 + number)
        self._seen = seen
        self._is_admin = orders.uid == 0
        socket_dir, cache_dir = orders.socket_dir, orders.cache_dir
        fallback: Fallback = self._chance.choice(["cache", "none"])
        self._client = Client(socket_dir=socket_dir, cache_dir=cache_dir, fallback=fallback)
        self._admin = AdminClient(Path(socket_dir))

    def run(self) -> None:
        """Do one thing after another; an error that nothing excuses ends the process."""
        end = time.monotonic() + self._orders.seconds
        with self._client:
            while time.monotonic() < end:
                self._do_one()

    def _do_one(self) -> None:
        users: list[Callable[[], None]] = [self._load] * 6 + [self._warm] * 4
        users += [self._hold, self._load_watched, self._list]
        admins = [self._pin, self._unpin, self._remove, self._evict, self._verify]
        act = self._chance.choice(users + (admins if self._is_admin else []))
        try:
            act()
        except ALWAYS_WRONG:
            raise
        except CraftcacheError as error:
            self._seen[f"{act.__name__.strip('_')}: {error.code}"] += 1
            if isinstance(error, StorageFull):
                time.sleep(self._chance.uniform(0, 0.3))
        else:
            self._seen[act.__name__.strip("_")] += 1

    def _any(self) -> int:
        return self._chance.randrange(self._orders.models)

    def _load(self) -> None:
        number = self._any()
        export = self._client.load(f"org/m{number}")
        check(export, number)
        time.sleep(self._chance.uniform(0, 0.05))  # it is in use meanwhile
        check(export, number)

    def _load_watched(self) -> None:
        check(self._client.load("watch:run"), WATCHED)

    def _warm(self) -> None:
        self._client.warm(f"org/m{self._any()}", refresh=self._chance.random() < 0.5)

    def _hold(self) -> None:
        self._client.warm(f"org/m{self._any()}", hold=self._chance.uniform(0.1, 2.0))

    def _list(self) -> None:
        self._client.models()
        self._client.status()

    def _pin(self) -> None:
        number = self._any()
        if number != self._orders.pinned:
            self._admin.pin(f"org/m{number}", expires_in=self._chance.uniform(0.1, 2.0))

    def _unpin(self) -> None:
        number = self._any()
        if number != self._orders.pinned:
            self._admin.unpin(f"org/m{number}")

    def _remove(self) -> None:
        self._admin.remove(f"org/m{self._any()}")

    def _evict(self) -> None:
        self._admin.evict(self._chance.choice([None, 300_000]))

    def _verify(self) -> None:
        for verdict in self._admin.verify([f"org/m{self._any()}"]):
            if verdict.outcome == "wrong":
                raise IntegrityError(f"{verdict.source}: {verdict.filename} is wrong")


def import_all() -> None:
    """Import what any later call may import.

    The interpreter's own files may be for its owner alone, and which of the paths through the
    client a process takes depends on when the daemon is killed.
    """
    for package in (craftcache, encodings):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.startswith(NOT_FOR_IMPORT):
                importlib.import_module(module.name)


def become(uid: int) -> None:
    """Be that user from now on."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def main() -> None:
    """Carry out the orders on the command line."""
    orders = Orders(**json.loads(sys.argv[1]))
    import_all()
    with Client(socket_dir=orders.socket_dir, cache_dir=orders.cache_dir) as first:
        check(first.load(f"org/m{orders.pinned}"), orders.pinned)
    print("ready", flush=True)
    sys.stdin.readline()
    become(orders.uid)
    seen: Counter[str] = Counter()
    failures: list[str] = []

    def work(number: int) -> None:
        try:
            SoakClient(orders, number, seen).run()
        except BaseException:
            failures.append(traceback.format_exc())
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(orders.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"uid": orders.uid, "seen": seen, "failures": failures}), flush=True)


if __name__ == "__main__":
    main()
