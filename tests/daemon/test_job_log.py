"""One line for each finished job and each refused request; in the journal, with fields."""

from __future__ import annotations

import logging
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from craftcache.errors import NotFound
from craftcached.events import Events
from craftcached.job_log import LINES_PER_WINDOW, WINDOW_SECONDS, Refusals, log_job
from craftcached.log_writer import LogWriter
from craftcached.systemd import JournalFormatter, JournalSocket, encode_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WARMED = {
    "source": "org/model",
    "revision": "r1",
    "bytes_fetched": 5,
    "bytes_reused": 2,
    "seconds": 1.239,
}


def parsed(record: bytes) -> dict[str, str]:
    """The fields of a record in the journal's native form, as its documentation reads them."""
    fields = {}
    while record:
        line, _, record = record.partition(b"\n")
        name, has_value, value = line.partition(b"=")
        if not has_value:
            (length,) = struct.unpack("<Q", record[:8])
            value, record = record[8 : 8 + length], record[8 + length :]
            assert record[:1] == b"\n"
            record = record[1:]
        fields[name.decode()] = value.decode()
    return fields


def test_a_finished_job_is_one_line_with_the_same_values_as_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "craftcached")
    events = Events()
    events.observe(log_job)
    events.tell("warm_started", source="org/model")
    events.tell("warmed", **WARMED)
    [record] = caplog.records
    message = record.getMessage()
    assert message == "warmed org/model at r1: 5 bytes fetched, 2 bytes reused, 1.24 s"
    fields = parsed(encode_record(record, message))
    assert fields["MESSAGE"] == message
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == ("6", "craftcached")
    assert len(fields["MESSAGE_ID"]) == 32
    assert fields["CRAFTCACHE_EVENT"] == "warmed"
    assert {key: fields[f"CRAFTCACHE_{key.upper()}"] for key in WARMED} == {
        key: str(value) for key, value in WARMED.items()
    }


def test_no_line_can_be_forged_by_a_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "craftcached")
    events = Events()
    events.observe(log_job)
    forged = "no such file a\nERROR craftcached: all is lost"
    failed = {"code": "NotFound", "message": forged, "hint": None, "retryable": False}
    events.tell("warm_failed", source="org/a", seconds=0.1, **failed)
    refusals = Refusals()
    refusals.log("load", NotFound(forged, source="org/a"), uid=1, pid=2)
    assert len(caplog.messages) == 2
    assert all("\n" not in message for message in caplog.messages)


def test_what_one_user_is_refused_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "craftcached")
    now = 0.0
    refusals = Refusals(clock=lambda: now)
    error = NotFound("not there", source="org/none")
    for _ in range(LINES_PER_WINDOW + 50):
        refusals.log("load", error, uid=1000, pid=7)
    refusals.log("load", error, uid=1001, pid=8)
    assert len(caplog.records) == LINES_PER_WINDOW + 1
    assert caplog.messages[-1] == "refused load of org/none to uid 1001, pid 8: NotFound, not there"
    fields = parsed(encode_record(caplog.records[-1], caplog.messages[-1]))
    assert (fields["CRAFTCACHE_CODE"], fields["CRAFTCACHE_UID"]) == ("NotFound", "1001")
    now = WINDOW_SECONDS
    refusals.log("load", error, uid=1000, pid=7)
    assert caplog.messages[-2:] == [
        "refused 50 more requests to uid 1000",
        "refused load of org/none to uid 1000, pid 7: NotFound, not there",
    ]


@pytest.fixture
def journal(base: Path) -> Iterator[socket.socket]:
    """A journal's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(base / "journal"))
        listening.settimeout(60)
        yield listening


def logged(base: Path, descriptor: int, *messages: str) -> None:
    """Log messages as a daemon does whose stderr is the journal."""
    log = logging.getLogger("craftcached.test")
    log.propagate = False
    log.setLevel(logging.INFO)
    with (
        JournalSocket(str(base / "journal")) as journal,
        LogWriter(descriptor, journal=journal, close_seconds=60) as writer,
    ):
        writer.setFormatter(JournalFormatter("%(message)s"))
        log.addHandler(writer)
        try:
            for message in messages:
                log.info(message, extra={"journal": {"CRAFTCACHE_SOURCE": "org/\u00fc"}})
        finally:
            log.removeHandler(writer)


def test_records_go_to_the_journal_with_their_fields(
    base: Path, journal: socket.socket, tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("wb") as stderr:
        logged(base, stderr.fileno(), "one line", "two\nlines")
    one, two = (parsed(journal.recv(1 << 20)) for _ in range(2))
    assert (one["MESSAGE"], one["CRAFTCACHE_SOURCE"]) == ("one line", "org/\u00fc")
    assert two["MESSAGE"] == "two\nlines"
    assert (tmp_path / "stderr").read_bytes() == b""


def test_a_record_that_is_too_large_for_a_datagram_is_passed_as_a_file(
    base: Path, journal: socket.socket, tmp_path: Path
) -> None:
    text = "x" * 300_000
    with (tmp_path / "stderr").open("wb") as stderr:
        logged(base, stderr.fileno(), text)
    _, descriptors, _, _ = socket.recv_fds(journal, 1024, 1)
    with open(descriptors[0], "rb") as file:
        file.seek(0)
        assert parsed(file.read())["MESSAGE"].count("x") == len(text)


def test_what_no_journal_takes_is_text_with_a_priority(base: Path, tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as stderr:
        logged(base, stderr.fileno(), "nobody listens")
    assert (tmp_path / "stderr").read_text() == "<6>nobody listens\n"
