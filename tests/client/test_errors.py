"""The error tree: one base, a code for each class, the same after a pickle and on the wire."""

from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import craftcache
from craftcache import errors
from craftcache.config import ConfigError
from craftcache.errors import (
    CraftcacheError,
    DeviceMemoryFull,
    IntegrityError,
    StorageFull,
    from_problem,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TREE = [
    cls
    for cls in map(errors.__dict__.get, errors.__all__)
    if isinstance(cls, type) and issubclass(cls, CraftcacheError)
]

OPTIONAL_TEXT = st.none() | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)


@st.composite
def any_error(draw: st.DrawFn) -> CraftcacheError:
    cls = draw(st.sampled_from(TREE))
    details: dict[str, Any] = {
        "source": draw(OPTIONAL_TEXT),
        "hint": draw(OPTIONAL_TEXT),
        "retryable": draw(st.none() | st.booleans()),
        "retry_after": draw(st.none() | st.floats(0, 1e6)),
    }
    if cls is StorageFull:
        details["missing_bytes"] = draw(st.integers(0, 2**63))
    if cls is DeviceMemoryFull:
        details["needed_bytes"] = draw(st.integers(0, 2**63))
        details["free_bytes"] = draw(st.none() | st.integers(0, 2**63))
    return cls(draw(st.text()), **details)


def assert_same_error(ours: CraftcacheError, theirs: CraftcacheError) -> None:
    assert type(ours) is type(theirs)
    assert str(ours) == str(theirs)
    assert vars(ours) == vars(theirs)


@given(any_error())
def test_an_error_is_the_same_after_a_problem_document(error: CraftcacheError) -> None:
    document = json.loads(json.dumps(error.to_problem()))
    assert document["code"] == error.code
    assert_same_error(from_problem(document), error)


@given(any_error(), st.sampled_from([copy.copy, lambda e: pickle.loads(pickle.dumps(e))]))
def test_an_error_is_the_same_after_a_copy(
    error: CraftcacheError, duplicate: Callable[[CraftcacheError], CraftcacheError]
) -> None:
    error.add_note("and another thing")
    assert_same_error(duplicate(error), error)


def test_an_error_of_the_settings_is_one_of_ours_and_the_same_after_a_pickle() -> None:
    error = ConfigError("cache_dir is not a string", hint="Correct the file")
    assert_same_error(pickle.loads(pickle.dumps(error)), error)


MEMBERS = {*StorageFull("x").to_problem(), *DeviceMemoryFull("x", free_bytes=0).to_problem()}


@given(st.dictionaries(st.sampled_from(sorted({*MEMBERS, "hint", "source"})), JSON))
def test_any_object_with_a_code_is_some_error(document: dict[str, Any]) -> None:
    error = from_problem(document)
    assert isinstance(error.message, str)
    assert isinstance(error.retryable, bool)
    assert isinstance(error.source, str | None)
    assert isinstance(error.retry_after, int | float | None)


@pytest.mark.parametrize("cls", TREE)
def test_every_class_is_public_and_complete(cls: type[CraftcacheError]) -> None:
    error = cls("it went wrong", source="org/name", hint="Mend it")
    assert getattr(craftcache, cls.__name__) is cls
    assert error.code == cls.__name__
    assert str(error) == "org/name: it went wrong. Mend it"
    retryable = {"BudgetExceeded", "DeviceMemoryFull", "Unavailable"}
    assert error.retryable == (cls.__name__ in retryable)
    assert 400 <= error.to_problem()["status"] < 600


def test_the_name_of_a_class_that_is_not_known_yet_is_still_shown() -> None:
    error = from_problem({"code": "QuotaExceeded", "detail": "too much", "retryable": True})
    assert type(error) is CraftcacheError
    assert error.message == "too much"
    assert error.retryable


def test_what_is_raised_may_be_caught_as_what_python_calls_it() -> None:
    assert issubclass(errors.NotFound, LookupError)
    assert issubclass(errors.InvalidSource, ValueError)
    assert issubclass(errors.UnknownDevice, ValueError)
    assert not issubclass(IntegrityError, OSError)
