"""Mirrors: who is asked for a range before its origin is, and what became of it.

    Mirrors    all of the node's, with their circuits and counters
    Route      the way of one download: to its mirrors, then to the origin

The worst that a mirror can do is cost time. A mirror that refuses a file is not asked for that file
again, and one that fails is left alone for a while. A mirror is asked only for files whose origin
promises a digest that nobody can forge, so that wrong bytes are found once the file is complete.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from craftcache.amounts import counted
from craftcached.mirror_rule import HUB, below

from .circuit import LONGEST_SECONDS, Circuit
from .faults import UNANSWERED, Fault, Trouble
from .provenance import Provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from craftcached.mirror_rule import MirrorRule

    from .provenance import SentRange
    from .spans import Span
    from .types import RemoteFile

__all__ = ["Mirror", "MirrorStatistics", "Mirrors", "Route", "MirrorSite", "LAST_MIRRORED_ATTEMPT"]

log = logging.getLogger("craftcached")

LAST_MIRRORED_ATTEMPT = 2
"""Attempts at right bytes that mirrors take part in; the next one is the origin's alone."""

CONTENT_HEADER = "X-Craftcache-Content"
"""Tells a mirror which content is meant, at which attempt: the part of its cache's key that makes
a second attempt find other bytes than a first one, for all nodes the same."""

GLANCE_SECONDS = 0.05
"""Time between two looks at mirrors that are awaited."""

_OF_ONE_STARTED_AGAIN = frozenset({Trouble.LOST.value, "unavailable"})
"""Failures by kind, of bytes and of metadata, that a server shows while it is started again."""

_UNFORGEABLE = frozenset({"sha256", "git-sha1"})
"""Digests that no other bytes can be found for; the 8 digits in torch.hub's names are no such."""


@dataclass(frozen=True, slots=True)
class MirrorStatistics:
    """The counters of one mirror since the daemon's start.

    Attributes:
        name: Its host and port.
        is_open: Whether it has failed and is left alone.
        bytes: Bytes that came from it.
        failures: Its failures by kind, ``refused`` among them.
        wrong_ranges: Ranges that turned out wrong.
    """

    name: str
    is_open: bool
    bytes: int
    failures: Counter[str]
    wrong_ranges: int


@dataclass(slots=True, eq=False)
class Mirror:
    """One mirror as this node has met it.

    Attributes:
        rule: What the administrator says of it.
        circuit: Whether it is left alone.
        received: Bytes that came from it.
        failures: Its failures by kind.
        wrong_ranges: Ranges that turned out wrong.
    """

    rule: MirrorRule
    circuit: Circuit
    received: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    wrong_ranges: int = 0

    def rank(self, key: str) -> float:
        """Its rank for ``key``, the highest of all mirrors going first.

        The same on all nodes, so that each slice is fetched by one mirror only, and in the ratio
        of the weights (rendezvous hashing).
        """
        digest = hashlib.sha256(f"{self.rule.url} {key}".encode()).digest()
        chance = (int.from_bytes(digest[:8], "big") + 0.5) / 2.0**64
        return self.rule.weight / -math.log(chance)


@dataclass(frozen=True, slots=True)
class MirrorSite:
    """A mirror, and the address at which it has a file.

    Attributes:
        mirror: The mirror.
        url: The address.
        is_by_hub_path: Whether that is the Hub's own path for the file, without a signature.
    """

    mirror: Mirror
    url: str
    is_by_hub_path: bool = False


class Mirrors:
    """All mirrors of the node.

    The mutable state: their circuits and counters, and what was sent in attempts that turned out
    wrong. It changes on the event loop in steps without an await, so there is no lock.

    Args:
        rules: What the administrator says of them.
        hub_endpoint: The Hub's address.
        tell: Told of events.
    """

    def __init__(
        self,
        rules: Sequence[MirrorRule] = (),
        *,
        hub_endpoint: str = "",
        tell: Callable[..., None] = lambda _event, **_fields: None,
    ) -> None:
        self._mirrors = [Mirror(rule, Circuit(grace=rule.grace)) for rule in rules]
        self.hub_endpoint = hub_endpoint
        self.provenance = Provenance()
        self._tell = tell

    def __iter__(self) -> Iterator[Mirror]:
        return iter(self._mirrors)

    def statistics(self) -> list[MirrorStatistics]:
        """The counters of all mirrors."""
        return [
            MirrorStatistics(
                each.rule.name,
                each.circuit.is_open,
                each.received,
                each.failures.copy(),
                each.wrong_ranges,
            )
            for each in self._mirrors
        ]

    def of_hub(self) -> list[Mirror]:
        """The mirrors whose word on the Hub's files may be taken now, the heaviest first."""
        return [
            each
            for each in sorted(self._mirrors, key=lambda mirror: -mirror.rule.weight)
            if each.rule.of == HUB and each.rule.metadata and each.circuit.may_ask()
        ]

    def route(self, file: RemoteFile) -> Route:
        """The way of one download of ``file``."""
        digest = file.promise.digest
        is_sure = digest is not None and digest.algorithm in _UNFORGEABLE
        standing = [each for each in self._mirrors if is_sure and self._stands_for(each, file)]
        return Route(file, standing if file.attempt <= LAST_MIRRORED_ATTEMPT else [], self)

    def attempts(self, file: RemoteFile) -> int:
        """The number of attempts at right bytes: the last is one that mirrors have no part in."""
        return LAST_MIRRORED_ATTEMPT + 1 if self.route(file).has_mirrors else 2

    def failed(self, mirror: Mirror, kind: str, message: str, began: float) -> None:
        """Leave ``mirror`` alone for a while, and say so once."""
        mirror.failures[kind] += 1
        seconds = mirror.circuit.failed(began, is_lost=kind in _OF_ONE_STARTED_AGAIN)
        if seconds is not None:
            name = mirror.rule.name
            then = "awaited" if mirror.circuit.is_awaited else "left alone"
            log.warning("mirror %s: %s; %s for %.1f s", name, message, then, seconds)
            self._tell("mirror_failed", mirror=name, reason=message, seconds=round(seconds, 1))

    def refused(self, mirror: Mirror, message: str, source: str) -> None:
        """Note that ``mirror`` does not have one file, or does not give it to this node."""
        mirror.failures["refused"] += 1
        log.info("%s: mirror %s: %s; asked elsewhere", source, mirror.rule.name, message)

    def believed(self, mirror: Mirror, source: str, reason: str) -> None:
        """Note that what is known of ``source`` is the word of ``mirror``."""
        name = mirror.rule.name
        log.warning("%s: %s; described by mirror %s, on its word", source, reason, name)
        self._tell("mirror_believed", mirror=name, source=source, reason=reason)

    def succeeded(self, mirror: Mirror, began: float) -> None:
        """Note a whole answer."""
        if mirror.circuit.succeeded(began):
            log.info("mirror %s serves again", mirror.rule.name)
            self._tell("mirror_recovered", mirror=mirror.rule.name)

    def convict(self, file: RemoteFile, guilty: Sequence[SentRange]) -> None:
        """Name the mirrors and ranges that were wrong in earlier attempts at ``file``."""
        for mirror in self._mirrors:
            wrong = [sent for sent in guilty if sent.mirror == mirror.rule.url]
            if not wrong:
                continue
            mirror.wrong_ranges += len(wrong)
            ranges = [[sent.span.start, sent.span.stop] for sent in wrong]
            shown = ", ".join(f"{start}-{stop - 1}" for start, stop in ranges[:10])
            log.warning(
                "%s: mirror %s sent wrong bytes of %s: %s, %s",
                file.source,
                mirror.rule.name,
                file.key,
                counted(len(wrong), "range"),
                shown,
            )
            self._tell(
                "mirror_wrong",
                mirror=mirror.rule.name,
                source=file.source,
                key=file.key,
                ranges=ranges,
            )
            # Wrong once is rot, which another attempt leaves behind. Wrong again is a liar.
            if any(sent.attempt == LAST_MIRRORED_ATTEMPT for sent in wrong):
                mirror.circuit.trip(LONGEST_SECONDS)

    def _stands_for(self, mirror: Mirror, file: RemoteFile) -> bool:
        rule = mirror.rule
        if rule.address(file.url, hub_endpoint=self.hub_endpoint) is None:
            return False
        # A query may be what opens the file to those who know it.
        return rule.of == HUB or "?" not in file.url or rule.forward_token


class Route:
    """Where one download asks for its ranges; used by one Job.

    The mutable state: which mirrors have refused the file, and whether the origin has failed.
    Changes on the event loop between awaits.

    Args:
        file: The file.
        mirrors: Those that stand for it; may be none.
        pool: All mirrors.
    """

    def __init__(self, file: RemoteFile, mirrors: Sequence[Mirror], pool: Mirrors) -> None:
        self._file = file
        self._mirrors = mirrors
        self._pool = pool
        self._refused: set[tuple[str, bool]] = set()
        self._is_origin_away = file.is_origin_away
        self._is_of_hub = below(file.url, f"{pool.hub_endpoint}/") is not None
        digest = file.promise.digest
        self._is_git_blob = digest is not None and digest.algorithm == "git-sha1"
        self.sites: dict[str, MirrorSite] = {}
        """Where each mirror was asked last, by its address."""

    @property
    def has_mirrors(self) -> bool:
        """Whether any mirror stands for the file."""
        return bool(self._mirrors)

    @property
    def slice_bytes(self) -> int | None:
        """Bytes at whose multiples requests end; None without mirrors."""
        return max((each.rule.slice_bytes for each in self._mirrors), default=None)

    @property
    def is_served(self) -> bool:
        """Whether a mirror may be asked for more of the file now, or in a moment."""
        refused = {url for url, _ in self._refused}
        return any(
            (each.circuit.may_ask() or each.circuit.is_awaited) and each.rule.url not in refused
            for each in self._mirrors
        )

    def peek(self, url: str, start: int) -> MirrorSite | None:
        """The mirror that would be asked now for the bytes at ``url`` from ``start`` on."""
        sites = [site for each in self._mirrors if (site := self._site(each, url))]
        if not sites:
            return None
        digest = self._file.promise.digest
        key = f"{digest.hex if digest else ''} {start // (self.slice_bytes or 1)}"
        return max(sites, key=lambda site: site.mirror.rank(key))

    async def choose(self, url: str, start: int) -> MirrorSite | None:
        """See peek; where a mirror may be there again in a moment, that is waited for.

        Raises:
            Fault: ELSEWHERE; it is not, and a whole slice of it is too much to ask the origin for.
        """
        site = self.peek(url, start)
        has_waited = False
        while site is None and self._is_worth_waiting(url):
            has_waited = True
            await asyncio.sleep(GLANCE_SECONDS)
            site = self.peek(url, start)
        if site is None and has_waited:
            raise Fault(Trouble.ELSEWHERE, "the mirror that was waited for is not back")
        return site

    def address(self, url: str, start: int) -> str:
        """The address that would be asked now: a mirror's, or ``url`` itself."""
        site = self.peek(url, start)
        return url if site is None else site.url

    def headers(self, site: MirrorSite, attempt: int) -> dict[str, str]:
        """The headers of a request to a mirror at one attempt, beside the range."""
        digest, rule = self._file.promise.digest, site.mirror.rule
        trusted = self._file.headers if rule.forward_token else {}
        content = f"{digest.hex if digest else ''}:{attempt}"
        return {**trusted, CONTENT_HEADER: content}

    @contextmanager
    def asking(self, site: MirrorSite | None) -> Iterator[Callable[[], None]]:
        """A context for one request to ``site`` and its answer; None is the origin.

        Its value is to be called once a good answer has begun.

        Raises:
            Fault: ELSEWHERE, in place of whatever a mirror did wrong.
        """
        if site is None:
            with self._asking_origin():
                yield lambda: None
            return
        circuit = site.mirror.circuit
        began = circuit.asked()
        self.sites[site.mirror.rule.url] = site
        try:
            yield lambda: circuit.answered(began)
        except Fault as fault:
            if fault.trouble in UNANSWERED:
                self._pool.failed(site.mirror, fault.trouble.value, fault.message, began)
            else:
                self._refuse(site, fault.message)
            raise Fault(Trouble.ELSEWHERE, fault.message) from None
        except BaseException:
            circuit.left()
            raise
        self._pool.succeeded(site.mirror, began)

    def came(self, site: MirrorSite | None, span: Span) -> None:
        """Note which bytes came from whom."""
        if site is not None:
            site.mirror.received += span.size
        if self._mirrors and span.size:
            whose = "" if site is None else site.mirror.rule.url
            self._pool.provenance.note(self._file, whose, span)

    @contextmanager
    def _asking_origin(self) -> Iterator[None]:
        try:
            yield
        except Fault as fault:
            if fault.trouble in UNANSWERED:
                self._is_origin_away = True
            elif fault.trouble is Trouble.EXPIRED:
                self._refused.clear()  # they have refused the same signature
            raise

    def _is_worth_waiting(self, url: str) -> bool:
        return any(
            each.circuit.is_awaited and self._place(each, url) is not None for each in self._mirrors
        )

    def _refuse(self, site: MirrorSite, message: str) -> None:
        site.mirror.circuit.left()
        self._refused.add((site.mirror.rule.url, site.is_by_hub_path))
        self._pool.refused(site.mirror, message, self._file.source)

    def _site(self, mirror: Mirror, url: str) -> MirrorSite | None:
        """Where ``mirror`` may be asked now for what the origin has at ``url``."""
        return self._place(mirror, url) if mirror.circuit.may_ask() else None

    def _place(self, mirror: Mirror, url: str) -> MirrorSite | None:
        """Where ``mirror`` has what the origin has at ``url``, as far as it has not refused it."""
        rule = mirror.rule
        address = rule.address(url, hub_endpoint=self._pool.hub_endpoint)
        is_by_hub_path = rule.of == HUB and address is not None
        if is_by_hub_path and not (self._is_git_blob or self._is_origin_away):
            return None  # the Hub is asked: it knows who may have the file, and says where it is
        if address is None and rule.of == HUB and self._is_of_hub:
            address = rule.rehosted(url)
        if address is None or (rule.url, is_by_hub_path) in self._refused:
            return None
        return MirrorSite(mirror, address, is_by_hub_path)
