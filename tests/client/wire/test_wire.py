"""The messages of the worker socket: what is said is understood, what is not is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache import errors, wire
from craftcache.cache.opened import FileInfo, OpenFile
from craftcache.errors import CraftcacheError, InvalidSource, StorageFull, Unavailable
from craftcache.sources import parse
from tests.support.sockets import file_info, status

from .messages import ANSWERS, JSON, REQUESTS, decode_answer

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_status_of_many_gpus_fits_into_a_message() -> None:
    model = wire.GpuModel("s" * 4096, "f" * 1024, "a" * 64, 1, 1)
    gpu = wire.GpuReport("u" * 64, "n" * 64, 1, 1, 1, 1, (model,) * 64)
    decoded: Any = decode_answer(wire.encode(status(gpus=(gpu,) * 16)))
    assert [len(each.models) for each in decoded.gpus] == [4] * 16
    alone: Any = decode_answer(wire.encode(gpu))
    assert len(alone.models) == 64


def test_memory_that_is_too_small_for_its_file_is_refused() -> None:
    file = OpenFile(file_info(size=10), -1, memory_bytes=10, lease=-1)
    fields = json.loads(wire.encode(wire.Loaded("s", "r", (file,))))
    fields["files"][0]["memory"] = 9
    with pytest.raises(wire.WireError, match="less than a file's size"):
        wire.decode_answer(json.dumps(fields).encode(), [-1, -1])


WIDE = "\N{MUSICAL SYMBOL G CLEF}"
"""A printable character that takes four bytes."""


def packet(**fields: object) -> bytes:
    return json.dumps(fields).encode()


@given(REQUESTS)
def test_requests_arrive_as_they_were_sent(request: Any) -> None:
    assert wire.decode_request(wire.encode(request)) == request


@given(ANSWERS)
def test_answers_arrive_as_they_were_sent(answer: Any) -> None:
    assert decode_answer(wire.encode(answer)) == answer


@given(REQUESTS, st.dictionaries(st.text(min_size=1).map(lambda key: f"later {key}"), JSON))
def test_keys_of_later_releases_are_ignored(request: Any, later: dict[str, Any]) -> None:
    fields = json.loads(wire.encode(request))
    assert wire.decode_request(json.dumps(later | fields).encode()) == request


@pytest.mark.parametrize("decode", [wire.decode_request, wire.decode_answer])
@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(wire.WireError):
        decode(data)


@given(st.data())
def test_a_message_with_one_value_replaced_is_refused_or_in_bounds(data: st.DataObject) -> None:
    decode: Callable[[bytes], Any]
    messages, decode = data.draw(
        st.sampled_from([(REQUESTS, wire.decode_request), (ANSWERS, decode_answer)])
    )
    fields = json.loads(wire.encode(data.draw(messages)))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(JSON)
    try:
        message = decode(json.dumps(fields).encode())
    except (wire.WireError, InvalidSource):
        return
    assert decode(wire.encode(message)) == message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": 1},
        {"type": "follow", "source": "a"},
        {"type": "loaded", "source": "a", "revision": "b", "files": []},
        {"type": "hello"},
        {"type": "hello", "versions": [1], "software": "x"},
        {"type": "hello", "versions": [2, 1], "software": "x"},
        {"type": "hello", "versions": [-1, 1], "software": "x"},
        {"type": "hello", "versions": [1, 65_536], "software": "x"},
        {"type": "hello", "versions": [1.0, 1.0], "software": "x"},
        {"type": "hello", "versions": [False, True], "software": "x"},
        {"type": "hello", "versions": [1, 1], "software": "x" * 129},
        {"type": "load", "filenames": []},
        {"type": "load", "source": "", "filenames": []},
        {"type": "load", "source": "a\nb", "filenames": []},
        {"type": "load", "source": "\ud800", "filenames": []},
        {"type": "load", "source": "a" * 4097, "filenames": []},
        {"type": "load", "source": ["a"], "filenames": []},
        {"type": "load", "source": "a"},
        {"type": "load", "source": "a", "filenames": "abc"},
        {"type": "load", "source": "a", "filenames": ["f"] * 17},
        {"type": "load", "source": "a", "filenames": [None]},
        {"type": "load", "source": "a", "filenames": ["f" * 1000] * 9},
        {"type": "resolve", "source": "a", "filename": ""},
        {"type": "warm", "sources": [], "filenames": []},
        {"type": "warm", "sources": ["a"] * 33, "filenames": []},
        {"type": "models", "after": None},
    ],
)
def test_requests_out_of_bounds_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_request(packet(**fields))


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 63 + "g"},
        {"sha256": "0" * 63},
        {"size": -1},
        {"size": 2**63},
        {"size": True},
        {"size": 1.5},
        {"verified_at": True},
        {"verified_at": -1.0},
        {"verified_at": 1e300},
        {"has_index": 1},
        {"filename": ""},
    ],
)
def test_files_out_of_bounds_are_refused(change: dict[str, object]) -> None:
    loaded = wire.Loaded("a", "b", (OpenFile(file_info(), -1, -1),))
    message = json.loads(wire.encode(loaded))
    assert wire.decode_answer(packet(**message), [-1, -1]) == loaded
    message["files"][0] |= change
    with pytest.raises(wire.WireError):
        wire.decode_answer(packet(**message), [-1, -1])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b'{"type": "status"',
        b'{"type": "status"} x',
        '{"type": "status"}'.encode("utf-16"),
        b'{"type": "status", "x": NaN}',
        b'{"type": "status", "x": -Infinity}',
        b'{"type": "status", "x": ' + b"9" * 5000 + b"}",
        b'{"type": "status", "x": ' + b"[" * 60_000 + b"}",
        b'{"type": "status"}' + b" " * wire.MAX_MESSAGE,
    ],
    ids=lambda data: data[:40],
)
def test_what_is_no_small_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_request(data)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "a//b", ".", "a\\b", "a/"])
def test_filenames_that_lead_out_of_the_source_are_the_users_error(name: str) -> None:
    for fields in (
        {"type": "load", "source": "org/name", "filenames": [name]},
        {"type": "warm", "sources": ["org/name"], "filenames": ["ok", name]},
        {"type": "resolve", "source": "org/name", "filename": name},
    ):
        with pytest.raises(InvalidSource) as caught:
            wire.decode_request(packet(**fields))
        assert caught.value.source == "org/name"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../b", "a//b", "", ".", "a/"])
def test_a_path_that_leads_out_of_the_cache_directory_is_refused(path: str) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_answer(packet(type="resolved", path=path, device=1, inode=1))


@pytest.mark.parametrize(
    "name", [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]
)
def test_every_error_of_the_tree_arrives_as_what_it_is(name: str) -> None:
    cls: type[CraftcacheError] = getattr(errors, name)
    error = cls("what happened\nin two lines", source="org/name", hint="do this", retry_after=2.5)
    problem = wire.decode_answer(wire.encode(wire.Problem(error)))
    assert isinstance(problem, wire.Problem)
    assert type(problem.error) is cls
    assert problem.error.to_problem() == error.to_problem()
    assert not problem.own_fault


def test_the_errors_of_a_warm_arrive_beside_its_revisions() -> None:
    full = StorageFull("no room", missing_bytes=17, source="b/b")
    sent = wire.WarmedBatch((wire.WarmedModel("a/a", "r"), full))
    done, failed = json.loads(wire.encode(sent))["results"]
    assert done["revision"] == "r"
    assert failed["problem"] == full.to_problem()
    alone = wire.decode_answer(wire.encode(wire.WarmedBatch((full,))))
    assert isinstance(alone, wire.Problem)
    assert isinstance(alone.error, StorageFull)
    assert alone.error.missing_bytes == 17


@pytest.mark.parametrize(
    "problem",
    [
        {"detail": "d", "retryable": False},
        {"code": "NotFound", "retryable": False},
        {"code": "NotFound", "detail": "d", "retryable": "no"},
        {"code": "NotFound", "detail": "d", "retryable": False, "source": 1},
        {"code": "NotFound", "detail": "d", "retryable": False, "retry_after": "soon"},
        {"code": "StorageFull", "detail": "d", "retryable": False, "missing_bytes": "many"},
    ],
)
def test_malformed_problems_are_refused(problem: dict[str, object]) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_answer(packet(type="problem", problem=problem, own_fault=False))


def test_a_code_of_a_later_release_is_a_plain_error() -> None:
    problem = {"code": "TooLoud", "detail": "turn it down", "retryable": True}
    arrived = wire.decode_answer(packet(type="problem", problem=problem, own_fault=False))
    assert isinstance(arrived, wire.Problem)
    assert type(arrived.error) is CraftcacheError
    assert arrived.error.message == "turn it down"
    assert arrived.error.retryable


def test_problems_are_clipped_until_they_fit() -> None:
    error = Unavailable('"' * 90_000, source=WIDE * 4096, hint="\x00" * 90_000)
    alone = wire.encode(wire.Problem(error))
    many = wire.encode(wire.WarmedBatch((error,) * wire.MAX_WARM_SOURCES))
    assert max(len(alone), len(many)) <= wire.MAX_MESSAGE
    assert len(json.loads(many)["results"]) == wire.MAX_WARM_SOURCES


def test_text_that_is_no_unicode_does_not_stop_an_answer() -> None:
    problem = wire.decode_answer(wire.encode(wire.Problem(Unavailable("cannot open /x/\udcff"))))
    assert isinstance(problem, wire.Problem)
    assert problem.error.message == "cannot open /x/?"


def test_the_largest_status_fits_and_its_texts_are_clipped_first() -> None:
    coming = wire.Coming(WIDE * 4096, "fetching", 2**63 - 1, 2**63 - 1, 1e9 / 3, 1e9 / 3, 1e9 / 3)
    not_warm = wire.NotWarm(WIDE * 4096, "C" * 64, WIDE * 9000, WIDE * 9000, 1e9 / 3, 1e9 / 3)
    recent = wire.RecentModel(WIDE * 4096, "r" * 256, 2**63 - 1, 1e9 / 3, is_pinned=True)
    whole = status(
        coming=(coming,) * 20,
        not_warm=(not_warm,) * 20,
        recent=(recent,) * 20,
        problems=(WIDE * 5000,) * 20,
        cache_dir="/" + "c" * 4095,
        socket_dir="/" + "s" * 4095,
        watches=dict.fromkeys("abcdefg", 2**63 - 1),
        fallbacks=dict.fromkeys("abcdefgh", 2**63 - 1),
    )
    arrived = wire.decode_answer(wire.encode(whole))
    assert isinstance(arrived, wire.DaemonStatus)
    assert (len(arrived.coming), len(arrived.not_warm), len(arrived.recent)) == (16, 16, 16)
    assert len(arrived.problems) == 16
    assert all(each.message.endswith("...") for each in arrived.not_warm)


def test_a_status_of_an_earlier_release_lacks_what_it_did_not_know() -> None:
    sent = json.loads(wire.encode(status(models=3)))
    later = ("coming", "not_warm", "not_warm_count", "recent", "disk", "max_bytes", "problems")
    for key in (*later, "quarantined", "quarantined_bytes", "hashed_since", "processes"):
        del sent["report"][key]
    del sent["report"]["fallbacks"]
    assert wire.decode_answer(json.dumps(sent).encode()) == status(models=3)


def largest_model() -> wire.CachedModel:
    """The model with the longest names that a request may ask for."""
    names = [f"{i:02}" + '"' * 510 for i in range(wire.MAX_FILES)]
    source = parse("https://host/" + WIDE * 4000 + "/")
    request = wire.encode(wire.Load(source, tuple(names)))
    assert isinstance(wire.decode_request(request), wire.Load)
    verified_at = datetime.fromtimestamp(1.7e9 / 3, UTC)
    files = (FileInfo(name, 2**63 - 1, WIDE * 6000, "0" * 64, verified_at) for name in names)
    return wire.CachedModel(WIDE * 4096, "r" * 40, tuple(files))


def test_the_answer_to_any_load_fits() -> None:
    model = largest_model()
    files = tuple(OpenFile(info, -1, -1) for info in model.files)
    answer = decode_answer(wire.encode(wire.Loaded(model.source, model.revision, files)))
    assert [file.info.filename for file in answer.files] == [f.filename for f in model.files]


def test_what_cannot_fit_or_be_said_is_refused() -> None:
    for value in ("y" * wire.MAX_MESSAGE, float("nan"), object()):
        with pytest.raises(wire.WireError):
            wire.encode(status(version=value))


def all_pages(models: list[wire.CachedModel]) -> list[wire.CachedModel]:
    """Every model, as a client gets them that asks page for page."""
    listed: list[wire.CachedModel] = []
    after = ""
    while True:
        page = wire.first_page(model for model in models if model.source > after)
        arrived = wire.decode_answer(wire.encode(page))
        assert isinstance(arrived, wire.ModelsPage)
        listed += arrived.models
        if not (after := arrived.next):
            return listed


def test_pages_hold_every_model_once_whatever_their_size() -> None:
    file = file_info("state_dict.bin")
    models = [wire.CachedModel(f"org/{i:05}", "r", (file,) * (i % 5)) for i in range(2000)]
    models.append(largest_model())
    listed = all_pages(models)
    assert [model.source for model in listed] == [model.source for model in models]
    assert listed[:-1] == models[:-1]


@pytest.mark.parametrize("name", ["a", "n" * 1000])
@pytest.mark.parametrize("count", [256, 257, 5000])
def test_a_model_of_many_files_hides_no_other(name: str, count: int) -> None:
    files = tuple(
        replace(file_info(f"{name}{number}"), origin="o" * 200) for number in range(count)
    )
    models = [wire.CachedModel(f"org/{each}", "r", files if each == "b" else ()) for each in "abc"]
    listed = all_pages(models)
    assert [model.source for model in listed] == ["org/a", "org/b", "org/c"]
    shown = listed[1].files
    assert 16 <= len(shown) <= 256
    assert [file.filename for file in shown] == [file.filename for file in files[: len(shown)]]


def test_no_models_are_one_empty_page() -> None:
    assert wire.first_page([]) == wire.ModelsPage(())


@pytest.mark.parametrize(
    ("ours", "theirs", "common"),
    [((1, 1), (1, 1), 1), ((1, 2), (2, 5), 2), ((2, 3), (1, 9), 3), ((1, 1), (2, 3), None)],
)
def test_the_highest_common_version_is_used(
    ours: tuple[int, int], theirs: tuple[int, int], common: int | None
) -> None:
    assert wire.Versions(*ours).common(wire.Versions(*theirs)) == common
    assert wire.Versions(*theirs).common(wire.Versions(*ours)) == common


def test_every_public_name_exists() -> None:
    assert all(hasattr(wire, name) for name in wire.__all__)
