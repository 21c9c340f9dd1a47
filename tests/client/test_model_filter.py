"""Filters of ``ls`` and ``prune``."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.durations import parse_span
from craftcache.errors import InvalidSource
from craftcache.model_filter import ModelFilter, ModelTraits, are_met, parse_size

NOW = 1_800_000_000.0
DAY = 86_400.0
MODEL = ModelTraits(
    "org/model",
    1_500_000_000,
    is_pinned=False,
    published_at=NOW - 40 * DAY,
    last_used_at=NOW - 2 * DAY,
)
NEVER_USED = ModelTraits(
    "org/new", 10, is_pinned=True, published_at=NOW - 40 * DAY, last_used_at=None
)
UNKNOWN = ModelTraits("a", 0, is_pinned=False, published_at=None, last_used_at=None)


@pytest.mark.parametrize(
    ("text", "of_model", "of_never_used", "of_unknown"),
    [
        ("accessed>1d", True, True, False),
        ("accessed>30d", False, True, False),
        ("accessed<3d", True, False, False),
        ("published>=40d", True, True, False),
        ("published<1w", False, False, False),
        ("size>1GB", True, False, False),
        ("size > 1.5 GB", False, False, False),
        ("size>=1500MB", True, False, False),
        ("size<=10", False, True, True),
        ("source=org/*", True, True, False),
        ("source!=*model", False, True, True),
        ("pinned=yes", False, True, False),
        ("pinned!=yes", True, False, True),
        ("pinned=no", True, False, True),
    ],
)
def test_a_filter_means_these(
    text: str, of_model: bool, of_never_used: bool, of_unknown: bool
) -> None:
    condition = ModelFilter.parse(text)
    assert str(condition) == text
    models = (MODEL, NEVER_USED, UNKNOWN)
    assert [condition.is_met_by(model, NOW) for model in models] == [
        of_model,
        of_never_used,
        of_unknown,
    ]


def test_all_filters_must_hold() -> None:
    filters = [ModelFilter.parse(text) for text in ("size>1GB", "accessed>1d")]
    assert are_met(filters, MODEL, NOW)
    assert not are_met([*filters, ModelFilter.parse("pinned=yes")], MODEL, NOW)
    assert are_met([], UNKNOWN, NOW)


@pytest.mark.parametrize(
    "text",
    ["", "size", "size>", "size>big", "size=1GB", "accessed>30", "accessed=1d", "source>x",
     "pinned=maybe", "colour=red", "size>-1", "size>1GiB"],
)  # fmt: skip
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(InvalidSource):
        ModelFilter.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        condition = ModelFilter.parse(text)
    except InvalidSource:
        return
    assert condition.is_met_by(MODEL, NOW) in (True, False)


@given(st.integers(0, 10**18))
def test_a_number_is_a_size_in_bytes(size: int) -> None:
    assert abs(parse_size(str(size)) - size) <= size / 2**52
    assert parse_size(f"{size}B") == parse_size(str(size))


def test_units_are_decimal_and_spans_have_one() -> None:
    assert parse_size("20GB") == 20 * 10**9
    assert parse_size("1.5k") == 1500
    assert parse_span("1.5h") == 5400
    with pytest.raises(InvalidSource):
        parse_span("90")
