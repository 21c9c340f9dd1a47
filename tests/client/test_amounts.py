"""Amounts as people read them."""

from __future__ import annotations

import pytest

from craftcache.amounts import counted, exact_size_text, size_text


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "model", "0 models"),
        (1, "model", "1 model"),
        (2, "model", "2 models"),
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
        (3, "watch", "3 watches"),
        (3, "entry", "3 entries"),
        (3, "key", "3 keys"),
    ],
)
def test_one_thing_is_said_in_the_singular(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (2_180_274, "2.2 MB"),
        (999_960_000, "1.0 GB"),
        (5 * 10**18, "5000.0 PB"),
    ],
)
def test_sizes_are_said_in_decimal_units(size: int, text: str) -> None:
    assert size_text(size) == text


def test_what_is_compared_is_said_to_the_last_byte() -> None:
    assert exact_size_text(1) == "1 byte"
    assert exact_size_text(65_536) == "65.5 kB (65536 bytes)"
