"""Manifests: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from craftcache.cache.manifest import (
    FileRecord,
    Manifest,
    ManifestError,
    files_revision,
    manifest_key,
)
from craftcache.cache.sealed import seal
from craftcache.dependencies import Dependency, UnmetDependency
from craftcache.sources import HubSource, UrlSource, parse

SHA256 = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.from_regex(r"[a-z0-9_.]{0,8}[a-z0-9](/[a-z0-9]{1,8})?", fullmatch=True)
MOMENTS = st.integers(-(2**35), 2**35).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
COUNTS = st.integers(0, 2**63 - 1)

RECORDS = st.builds(
    FileRecord,
    filename=NAMES,
    path=NAMES,
    sha256=SHA256,
    size=COUNTS,
    origin=st.text(),
    verified_at=MOMENTS,
    inode=COUNTS,
    mtime_ns=COUNTS,
    etag=st.none() | st.text(),
    index_sha256=st.none() | SHA256,
)

NEEDS = st.builds(
    Dependency,
    source=st.sampled_from(["t5-base", "org/name", "https://host/name-0123abcd.th"]),
    why=st.text(),
    filenames=st.lists(NAMES, max_size=2).map(tuple),
    one_of=st.lists(st.lists(NAMES, max_size=2).map(tuple), max_size=2).map(tuple),
    optional=st.lists(NAMES, max_size=2).map(tuple),
)

MANIFESTS = st.builds(
    Manifest,
    source=st.sampled_from(["t5-base", "org/name@v1", "https://host/x.th", "watch:run@3"]),
    revision=st.text("0123456789abcdef", min_size=40, max_size=40),
    files=st.lists(RECORDS, max_size=3).map(tuple),
    published_at=MOMENTS,
    needs=st.lists(NEEDS, max_size=2).map(tuple),
    unmet=st.lists(st.builds(UnmetDependency, st.text(), st.text(), st.text()), max_size=2).map(
        tuple
    ),
    needed_only=st.booleans(),
)

KEY = manifest_key(HubSource("org/name"))

C1, C2 = "c1" * 20, "c2" * 20

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)


def record(filename: str, sha256: str = "a" * 64) -> FileRecord:
    moment = datetime(2026, 1, 31, 12, tzinfo=UTC)
    return FileRecord(filename, f"blobs/{filename}", sha256, 5, "https://host", moment, 1, 2)


def manifest(*files: FileRecord, revision: str = C1) -> Manifest:
    return Manifest("org/name", revision, files, datetime(2026, 1, 31, 12, tzinfo=UTC))


@given(MANIFESTS)
def test_what_is_dumped_is_parsed(written: Manifest) -> None:
    assert Manifest.parse(written.dump()) == written


def test_a_manifest_of_an_earlier_release_names_no_needs() -> None:
    fields = json.loads(manifest(record("state_dict.bin")).dump())
    for key in ("needs", "unmet", "checksum"):
        del fields[key]
    parsed = Manifest.parse(json.dumps(fields).encode())
    assert (parsed.needs, parsed.unmet, parsed.needed_only) == ((), (), False)


NEED = {"source": "t5-base", "why": "", "filenames": [], "one_of": [], "optional": []}


@pytest.mark.parametrize(
    "changed",
    [
        {"needs": None},
        {"needs": {}},
        {"needs": ["t5-base"]},
        {"needs": [NEED | {"source": "watch:run"}]},
        {"needs": [NEED | {"source": "no id"}]},
        {"needs": [NEED | {"filenames": "config.json"}]},
        {"needs": [NEED | {"filenames": ["../config.json"]}]},
        {"needs": [NEED | {"one_of": ["*"]}]},
        {"needs": [NEED | {"optional": [1]}]},
        {"unmet": [{"what": "x", "why": "y"}]},
        {"needed_only": 1},
    ],
)
def test_malformed_needs_are_refused(changed: dict[str, Any]) -> None:
    fields = json.loads(manifest(record("state_dict.bin")).dump()) | changed
    del fields["checksum"]
    with pytest.raises(ManifestError):
        Manifest.parse(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("known", "as_need", "needed_only"),
    [
        *((None, True, True), (None, False, False)),
        *((True, True, True), (True, False, False)),
        *((False, True, False), (False, False, False)),
    ],
)
def test_what_was_once_asked_for_by_name_stays_so(
    known: bool | None, as_need: bool, needed_only: bool
) -> None:
    before = None if known is None else replace(manifest(), needed_only=known)
    after = Manifest.merged(before, HubSource("org/name"), C1, [record("a")], as_need=as_need)
    assert after.needed_only is needed_only


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.parse(data)


@given(st.data())
def test_a_manifest_with_one_value_replaced_is_refused_or_well_formed(data: st.DataObject) -> None:
    fields: dict[str, Any] = json.loads(manifest(record("state_dict.bin")).dump())
    del fields["checksum"]
    target: dict[str, Any] = data.draw(st.sampled_from([fields, fields["files"][0]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    try:
        parsed = Manifest.parse(json.dumps(fields).encode())
    except ManifestError:
        return
    assert Manifest.parse(parsed.dump()) == parsed
    for file in parsed.files:
        assert PurePosixPath("/cache", file.path) != PurePosixPath("/cache")
        assert len(file.sha256) == 64
        assert file.size >= 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b'{"version": ' + b"1" * 5000 + b"}",
        b'{"version": 2, "files": []}',
        b"\xff",
    ],
)
def test_hostile_text_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.parse(data)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\0b", "a\nb"])
@pytest.mark.parametrize("key", ["path", "filename"])
def test_a_path_that_leads_out_of_the_cache_is_refused(key: str, path: str) -> None:
    fields = json.loads(manifest(record("state_dict.bin")).dump())
    fields["files"][0][key] = path
    del fields["checksum"]
    with pytest.raises(ManifestError):
        Manifest.parse(json.dumps(fields).encode())


@pytest.mark.parametrize("revision", ["", "main", "../" * 14, "A" * 40, "a" * 39, "a" * 40 + "\n"])
def test_a_revision_that_is_no_commit_is_refused(revision: str) -> None:
    with pytest.raises(ManifestError):
        Manifest.parse(manifest(revision=revision).dump())


def test_times_keep_their_moment_whatever_their_zone() -> None:
    zoned = datetime(2026, 1, 31, 14, tzinfo=timezone(timedelta(hours=2)))
    written = Manifest("org/name", C1, (), zoned)
    assert b"2026-01-31T12:00:00Z" in written.dump()
    assert Manifest.parse(written.dump()).published_at == zoned


def test_keys_of_later_releases_are_ignored() -> None:
    written = manifest(record("state_dict.bin"))
    fields = json.loads(written.dump())
    fields["later"] = fields["files"][0]["later"] = 1
    del fields["checksum"]
    assert Manifest.parse(seal(fields)) == written
    assert Manifest.parse(json.dumps(fields).encode()) == written


def test_files_of_one_revision_come_together_and_those_of_another_go() -> None:
    source = HubSource("org/name")
    known = manifest(record("a"), record("b"))
    newer = record("b", "b" * 64)
    same = Manifest.merged(known, source, C1, [newer, record("c")])
    assert same.files == (record("a"), newer, record("c"))
    assert Manifest.merged(known, source, C2, [newer]).files == (newer,)
    assert Manifest.merged(None, source, C1, [newer]).files == (newer,)


def test_a_url_has_its_files_for_a_revision() -> None:
    source = UrlSource("https://host/x.th")
    one = Manifest.merged(None, source, None, [record("x.th")])
    same = Manifest.merged(one, source, None, [record("x.th")])
    other = Manifest.merged(one, source, None, [record("x.th", "b" * 64)])
    assert one.revision == same.revision == files_revision({"x.th": "a" * 64})
    assert other.revision != one.revision
    assert len(one.revision) == 40


def test_a_manifest_says_what_it_has() -> None:
    some = manifest(record("a"), record("b"))
    source = HubSource("org/name")
    assert some.select(source, ["b", "a"]) == (record("b"), record("a"))
    assert some.select(source, ["a", "c"]) is None
    assert some.file("a") == record("a")
    assert some.file("c") is None
    assert some.size == 10


@pytest.mark.parametrize(("fragment", "is_it"), [("", True), ("a" * 64, True), ("b" * 64, False)])
def test_a_file_is_not_what_a_url_with_another_digest_names(fragment: str, is_it: bool) -> None:
    source = parse("https://host/x.th" + (f"#sha256={fragment}" if fragment else ""))
    selected = manifest(record("x.th")).select(source, ["x.th"])
    assert selected == ((record("x.th"),) if is_it else None)


@pytest.mark.parametrize("part", ["manifest", "file"])
def test_each_field_of_a_manifest_that_is_edited_is_noticed(part: str) -> None:
    file = replace(record("a"), index_sha256="b" * 64, etag="c")
    whole = replace(manifest(file), unmet=(UnmetDependency("x", "y", "z"),), needed_only=True)
    fields: dict[str, Any] = json.loads(whole.dump(KEY))
    target = fields if part == "manifest" else fields["files"][0]
    assert Manifest.parse(json.dumps(fields).encode(), KEY) == whole
    for name, value in list(target.items()):
        for edited in (_edited(value), None):
            target[name] = edited
            with pytest.raises(ManifestError):
                Manifest.parse(json.dumps(fields).encode(), KEY)
        del target[name]
        with pytest.raises(ManifestError):
            Manifest.parse(json.dumps(fields).encode(), KEY)
        target[name] = value


def _edited(value: object) -> object:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return ("0" if value[0] != "0" else "1") + value[1:]
        case list():
            return value[:-1] if value else [1]
    raise AssertionError(value)


def test_the_manifest_of_one_source_is_not_taken_for_that_of_another() -> None:
    data = manifest(record("a")).dump(KEY)
    assert Manifest.parse(data, KEY) == Manifest.parse(data)
    with pytest.raises(ManifestError, match="another source"):
        Manifest.parse(data, "e" * 64)


@pytest.mark.parametrize(
    ("source", "shown", "is_it"),
    [
        ("org/name", "org/name", True),
        ("org/name", "org/other", False),
        ("org/name@v1", "org/name", False),
        ("org/name", "watch:run", False),
        ("watch:run@3", "watch:run@4", False),
        ("https://host/x.th", "https://host/x.th", True),
        ("https://host/x.th", "https://host/y.th", False),
        ("https://host/x.th?signed", "https://host/x.th?...", True),
    ],
)
def test_a_manifest_that_names_another_source_is_none_whatever_its_checksum(
    source: str, shown: str, is_it: bool
) -> None:
    key = manifest_key(parse(source))
    data = replace(manifest(record("a")), source=shown).dump(key)
    if is_it:
        assert Manifest.parse(data, key).source == shown
    else:
        with pytest.raises(ManifestError, match="another source"):
            Manifest.parse(data, key)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("manifest", "source", "a\0b/c"),
        ("manifest", "source", "org/\ud800"),
        ("manifest", "source", "ftp://host/x"),
        ("manifest", "source", ""),
        ("file", "origin", "\ud800"),
        ("file", "size", 2**63),
        ("file", "inode", 10**30),
    ],
)
def test_what_could_be_neither_shown_nor_sent_is_refused_whatever_the_checksum(
    part: str, field: str, value: object
) -> None:
    fields: dict[str, Any] = json.loads(manifest(record("a")).dump(KEY))
    (fields if part == "manifest" else fields["files"][0])[field] = value
    del fields["checksum"]
    with pytest.raises(ManifestError):
        Manifest.parse(seal(fields), KEY)


@pytest.mark.parametrize("sha256", ["a" * 64, "b" * 64])
def test_a_blob_that_is_named_by_its_digest_has_no_other(sha256: str) -> None:
    data = manifest(replace(record("a"), path=f"x/{'a' * 64}", sha256=sha256)).dump()
    if sha256 == "a" * 64:
        assert Manifest.parse(data).files[0].sha256 == sha256
    else:
        with pytest.raises(ManifestError, match="no file of that sha256"):
            Manifest.parse(data)


def test_one_source_has_one_key() -> None:
    assert manifest_key(parse("org/name")) == manifest_key(parse("org/name@main"))
    assert manifest_key(parse("org/name")) != manifest_key(parse("org/name@dev"))
    digest = "#sha256=" + "a" * 64
    assert manifest_key(parse("https://h/x.th")) == manifest_key(parse(f"https://h/x.th{digest}"))
    export = manifest_key(parse("https://h/x/"))
    assert export == manifest_key(parse("https://h/x/state_dict.bin"))
    assert len(export) == 64
