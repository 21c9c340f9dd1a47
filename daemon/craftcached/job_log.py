"""One log line for each finished job and each refused request, with fields for the journal.

The line says all of it in words, for whoever reads standard error. The same values are fields in
the journal, so that ``journalctl CRAFTCACHE_EVENT=warm_failed`` or ``CRAFTCACHE_SOURCE=org/name``
finds them; see systemd/journal.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from craftcache.amounts import counted, size_text
from craftcache.daemon.events import eviction_words
from craftcache.wire.activity import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from craftcache.errors import CraftcacheError

    from .events import Event

__all__ = ["JOB_MESSAGE_ID", "REFUSED_MESSAGE_ID", "Refusals", "journal_fields", "log_job"]

log = logging.getLogger("craftcached")

JOB_MESSAGE_ID: Final = "7f3c8e0b5d2a4c61a9e4d1f06b8273c5"
REFUSED_MESSAGE_ID: Final = "2b96d4e1c07f48d3b5a2e8190f6c7d34"
"""The journal's MESSAGE_ID of these lines, by which all of them are found."""

WINDOW_SECONDS: Final = 10.0
LINES_PER_WINDOW: Final = 100
"""Refused requests of one user that are logged in such a time: no user fills the log."""

_WARMED: Final = (
    "warmed %(source)s at %(revision)s: "
    "%(bytes_fetched)s fetched, %(bytes_reused)s reused, %(seconds).2f s"
)

_VERIFIED: Final = (
    "verified %(files)s: "
    "%(right)d right, %(mended)d mended, %(wrong)d wrong, %(missing)d missing, %(seconds).2f s"
)

_SENTENCES: Final[dict[str, tuple[int, str]]] = {
    "warmed": (logging.INFO, _WARMED),
    "warm_failed": (
        logging.WARNING,
        "not warmed %(source)s: %(code)s, %(message)s, %(seconds).2f s",
    ),
    "warm_cancelled": (
        logging.INFO,
        "not warmed %(source)s: nobody waits for it any more, %(seconds).2f s",
    ),
    "evicted": (logging.INFO, "removed %(source)s %(reason)s: %(freed_bytes)s freed"),
    "removed": (logging.INFO, "removed %(source)s: %(freed_bytes)s freed"),
    "pinned": (logging.INFO, "pinned %(source)s (locked in memory: %(locked)s)"),
    "unpinned": (logging.INFO, "unpinned %(source)s"),
    "generation": (logging.INFO, "watch %(name)s: generation %(generation)d is served"),
    "verified": (
        logging.INFO,
        _VERIFIED,
    ),
}
"""Level and text of the line of each kind of event that is the end of a job."""

_IN_WORDS: Final[dict[str, Callable[[Any], str]]] = {
    "files": lambda count: counted(count, "file"),
    "reason": eviction_words,
    "bytes_fetched": size_text,
    "bytes_reused": size_text,
    "freed_bytes": size_text,
}
"""What stands in the text in another form than in the journal's field of that name."""


def log_job(event: Event) -> None:
    """Log an event that is the end of a job; an observer of Events."""
    level, sentence = _SENTENCES.get(event["event"], (0, ""))
    if sentence:
        fields = {key: _shown(value) for key, value in event.items() if key != "at"}
        words = {key: say(fields[key]) for key, say in _IN_WORDS.items() if key in fields}
        log.log(level, sentence, fields | words, extra=journal_fields(JOB_MESSAGE_ID, fields))


def _shown(value: Any) -> Any:  # noqa: ANN401  # whatever an event says
    """A value of which no line can be forged: names and messages come from anywhere."""
    return one_line(value) if isinstance(value, str) else value


def journal_fields(message_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """``extra`` of a log record for the journal: each value as ``CRAFTCACHE_`` and its name."""
    named = {f"CRAFTCACHE_{k.upper()}": str(v) for k, v in fields.items() if v is not None}
    return {"journal": {"MESSAGE_ID": message_id} | named}


class Refusals:
    """Logs requests that are answered by an error, up to a number for each user and time.

    Its state changes on the event loop, in steps without an await, so there is no lock.

    Args:
        clock: Returns the time in seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window = clock()
        self._lines: dict[int, int] = {}

    def log(self, request: str, error: CraftcacheError, *, uid: int, pid: int) -> None:
        """Log one; beyond the number it is counted, and the count is logged later."""
        now = self._clock()
        if now - self._window >= WINDOW_SECONDS:
            self._tell_left_out()
            self._window, self._lines = now, {}
        lines = self._lines[uid] = self._lines.get(uid, 0) + 1
        if lines > LINES_PER_WINDOW:
            return
        fields = {
            "event": "refused",
            "request": request,
            "code": error.code,
            "source": error.source,
            "uid": uid,
            "pid": pid,
        }
        log.info(
            "refused %s%s to uid %d, pid %d: %s, %s",
            request,
            f" of {error.source}" if error.source else "",
            uid,
            pid,
            error.code,
            _shown(error.message),
            extra=journal_fields(REFUSED_MESSAGE_ID, fields),
        )

    def _tell_left_out(self) -> None:
        for uid, lines in self._lines.items():
            if lines > LINES_PER_WINDOW:
                left_out = counted(lines - LINES_PER_WINDOW, "more request")
                log.warning("refused %s to uid %d", left_out, uid)
