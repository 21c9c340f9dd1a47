"""What the HTTP interface says to administrators arrives as it was said."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.daemon.activity import Activity
from craftcache.daemon.administration import (
    Eviction,
    KeptModel,
    QuarantinedFile,
    QueuedWarm,
    Verdict,
    Verification,
    WatchedGeneration,
    WatchList,
    WatchReport,
)
from craftcache.daemon.processes import ModelProcess, ModelUse
from craftcache.errors import Unavailable
from craftcache.watch_rule import WatchRule
from craftcache.wire import Coming, WarmOptions, WireError
from craftcache.wire.fields import Fields

NAMES = st.text("abc-_.", min_size=1, max_size=9).filter(lambda name: name.strip("."))
SIZES = st.integers(0, 2**63 - 1)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
MOMENTS = st.integers(0, 2**32).map(lambda at: datetime.fromtimestamp(at, UTC))
OPTIONS = st.builds(
    WarmOptions, st.lists(NAMES, max_size=3).map(tuple), st.booleans(), st.booleans(), st.booleans()
)
RULES = st.builds(WatchRule, name=st.text("abc", min_size=1), directory=st.just("/runs/a"))
GENERATIONS = st.builds(
    WatchedGeneration,
    st.just("/runs/a"),
    SIZES,
    DIGESTS,
    MOMENTS,
    SIZES,
    st.fixed_dictionaries({"lm": DIGESTS, "compression": DIGESTS}),
)
REPORTS = st.builds(
    WatchReport,
    RULES,
    NAMES,
    st.just("") | NAMES,
    MOMENTS,
    st.none() | NAMES,
    st.none() | GENERATIONS,
    st.none() | GENERATIONS,
    st.lists(SIZES, max_size=3).map(tuple),
    st.booleans(),
)
TIMES = st.floats(0, 2**40)
COMING = st.builds(Coming, NAMES, NAMES, SIZES, st.none() | SIZES, st.none(), st.none(), TIMES)
USES = st.builds(ModelUse, NAMES, st.just("") | NAMES, SIZES, TIMES, st.none() | st.booleans())
VALUES = st.one_of(
    st.builds(Activity, TIMES, TIMES, st.lists(COMING, max_size=3).map(tuple), *[SIZES] * 11),
    st.builds(
        ModelProcess,
        SIZES,
        SIZES,
        st.just("") | NAMES,
        st.just("") | NAMES,
        st.lists(USES, max_size=3).map(tuple),
        st.lists(NAMES, max_size=3).map(tuple),
    ),
    st.builds(QueuedWarm, SIZES, NAMES, OPTIONS, SIZES),
    st.builds(
        Eviction,
        st.lists(NAMES, max_size=3).map(tuple),
        SIZES,
        SIZES,
        st.lists(st.builds(KeptModel, NAMES, NAMES), max_size=3).map(tuple),
    ),
    st.builds(
        Verdict,
        NAMES,
        NAMES,
        DIGESTS,
        st.sampled_from(["right", "mended", "wrong", "missing"]),
        st.sampled_from(["file", "index", "link", "manifest"]),
        st.none() | NAMES,
    ),
    st.builds(
        Verification,
        SIZES,
        st.lists(NAMES, max_size=3).map(tuple),
        st.floats(0, 2**40),
        st.none() | st.floats(0, 2**40),
        SIZES,
        SIZES,
        SIZES,
        SIZES,
        st.dictionaries(NAMES, SIZES, max_size=3),
    ),
    st.builds(
        QuarantinedFile,
        NAMES,
        SIZES,
        st.floats(0, 2**40),
        st.lists(NAMES, max_size=3).map(tuple),
    ),
    st.builds(
        WatchList, st.lists(REPORTS, max_size=3).map(tuple), st.lists(RULES, max_size=3).map(tuple)
    ),
)


def sent(value: Any, **later: Any) -> Fields:
    """A value as its other side gets it, with keys of a later release."""
    return Fields(json.loads(json.dumps(later | value.to_fields())))


@given(VALUES)
def test_a_value_arrives_as_it_was_said_whatever_a_later_release_adds(value: Any) -> None:
    assert type(value).parse(sent(value, some_later_key=[1])) == value


def test_a_failure_arrives_as_the_error_that_it_is() -> None:
    failure = Unavailable("away", source="org/model", retry_after=2.0)
    queued = QueuedWarm(1, "org/model", WarmOptions(), 3, failure)
    arrived = QueuedWarm.parse(sent(queued)).failure
    assert type(arrived) is Unavailable
    assert arrived.to_problem() == failure.to_problem()


@pytest.mark.parametrize(
    "change",
    [{"outcome": "odd"}, {"part": "odd"}, {"sha256": "0"}, {"filename": 1}, {"source": None}],
)
def test_what_is_malformed_is_refused(change: dict[str, Any]) -> None:
    verdict = Verdict("org/model", "f", "0" * 64, "right")
    with pytest.raises(WireError):
        Verdict.parse(Fields(verdict.to_fields() | change))
