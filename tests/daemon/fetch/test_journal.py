"""The journal: what survives which end of the process or the machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.digests import Digest, Promise
from craftcached.fetch.journal import Identity, Journal, PartRecord, read_record
from craftcached.fetch.spans import Span, SpanSet

IDENTITY = Identity(100, "v1", "sha256:" + "a" * 64)
PROMISE = Promise(100, Digest("sha256", "a" * 64))


def written(path: Path) -> Path:
    journal = Journal(
        path,
        path.with_name("new"),
        PartRecord(IDENTITY, (Span(0, 10),), (Span(0, 10), Span(50, 60))),
        "boot1",
    )
    journal.written(Span(10, 20))
    journal.durable([Span(50, 60)])
    journal.written(Span(20, 30))
    journal.close()
    return path


def test_in_the_same_boot_all_that_was_written_counts(tmp_path: Path) -> None:
    record = read_record(written(tmp_path / "j"), "boot1")
    assert record is not None
    assert record.identity == IDENTITY
    assert record.present == (Span(0, 30), Span(50, 60))
    assert record.durable == (Span(0, 10), Span(50, 60))


@pytest.mark.parametrize("boot", ["boot2", ""])
def test_after_a_boot_only_what_was_synced_counts(tmp_path: Path, boot: str) -> None:
    record = read_record(written(tmp_path / "j"), boot)
    assert record is not None
    assert record.present == record.durable == (Span(0, 10), Span(50, 60))


@given(st.data())
def test_a_journal_cut_anywhere_claims_nothing_that_the_whole_did_not(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = written(Path(directory) / "j")
        text = path.read_bytes()
        path.write_bytes(text[: data.draw(st.integers(0, len(text)))])
        record = read_record(path, "boot1")
        if record is not None:
            assert record.identity == IDENTITY
            whole = SpanSet([Span(0, 30), Span(50, 60)])
            assert not [gap for span in record.present for gap in whole.gaps(span)]


@given(st.binary(max_size=200))
def test_any_other_file_is_no_journal(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "j"
        path.write_bytes(data)
        assert read_record(path, "boot1") is None


def test_spans_beyond_the_file_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path, path.with_name("new"), PartRecord(IDENTITY, (), ()), "boot1")
    journal.written(Span(90, 101))
    journal.close()
    record = read_record(path, "boot1")
    assert record is not None
    assert record.present == ()


@pytest.mark.parametrize(
    ("identity", "promise", "may"),
    [
        (IDENTITY, PROMISE, True),
        (IDENTITY, Promise(digest=PROMISE.digest), True),
        (IDENTITY, Promise(101, PROMISE.digest), False),
        (IDENTITY, Promise(100, Digest("sha256", "b" * 64)), False),
        (IDENTITY, Promise(100), False),
        (Identity(100, "v1", None), PROMISE, False),
        (Identity(100, "v1", None), Promise(100), True),
        (Identity(100, "v1", None), Promise(100, etag="v1"), True),
        (Identity(100, "v1", None), Promise(100, etag="v2"), False),
        (Identity(100, None, None), Promise(100), False),
    ],
)
def test_what_may_be_continued(identity: Identity, promise: Promise, may: bool) -> None:
    assert identity.may_continue(promise) is may
