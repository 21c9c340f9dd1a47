"""Which validators tell that the bytes are the same."""

from __future__ import annotations

import pytest

from craftcache.origins.etags import strong_etag


@pytest.mark.parametrize(
    ("header", "validator"),
    [
        ('"abc"', "abc"),
        ('"a"b"', 'a"b'),
        ('W/"abc"', None),
        ("abc", None),
        ('"abc', None),
        ('""', None),
        ('"', None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_strong_and_quoted_validator_counts(
    header: str | None, validator: str | None
) -> None:
    assert strong_etag(header) == validator
