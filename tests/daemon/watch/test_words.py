"""What is said of watches on the worker socket, and how sources name them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache import Generation
from craftcache.errors import InvalidSource
from craftcache.sources import WatchSource, parse
from craftcache.wire import (
    Follow,
    Identified,
    Identify,
    WireError,
    decode_answer,
    decode_request,
    encode,
)

NUMBERS = st.integers(0, 2**63 - 1)
SHA256 = "0123456789abcdef" * 4
GENERATION = Generation("run", 3, {"lm": SHA256, "compression": SHA256[::-1]}, Path("/runs/a"))


@given(device=NUMBERS, inode=NUMBERS)
def test_requests_are_read_as_they_were_sent(device: int, inode: int) -> None:
    for request in (Identify(device, inode), Follow("run"), Follow("run", inode)):
        assert decode_request(encode(request)) == request


def test_answers_are_read_as_they_were_sent() -> None:
    for answer in (Identified("run"), Identified(""), GENERATION):
        assert decode_answer(encode(answer)) == answer


@pytest.mark.parametrize(
    "packet",
    [
        b'{"type": "generation", "name": "run", "number": 1, "path": "/a", "sha256": {"lm": "00"}}',
        b'{"type": "generation", "name": "run", "number": -1, "path": "/a", "sha256": {}}',
        b'{"type": "identified"}',
        b'{"type": "identify", "device": 1}',
        b'{"type": "follow", "name": ""}',
        b'{"type": "follow", "name": "run", "after": "1"}',
    ],
)
def test_what_is_malformed_is_refused(packet: bytes) -> None:
    decode = decode_request if b"ident" in packet[:15] or b"follow" in packet else decode_answer
    with pytest.raises(WireError):
        decode(packet)


def test_only_another_generation_of_the_same_watch_answers_a_follower() -> None:
    assert Follow("run", 2).is_answered_by(GENERATION)
    assert Follow("run").is_answered_by(GENERATION)
    assert not Follow("run", 3).is_answered_by(GENERATION)
    assert not Follow("other", 2).is_answered_by(GENERATION)


def test_a_source_may_name_a_generation() -> None:
    assert parse("watch:run") == WatchSource("run")
    assert parse("watch:run@12") == WatchSource("run", 12)
    assert str(WatchSource("run", 12)) == "watch:run@12"


@pytest.mark.parametrize(
    "text", ["watch:run@", "watch:run@0", "watch:run@x", "watch:@1", "watch:-"]
)
def test_a_malformed_watch_is_no_source(text: str) -> None:
    with pytest.raises(InvalidSource):
        parse(text)
