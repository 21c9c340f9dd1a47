"""Names of sources: the resolution order, and that nothing but a source comes out of any text."""

from __future__ import annotations

import logging
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from hypothesis import example, given
from hypothesis import strategies as st

from craftcache.digests import Digest
from craftcache.errors import InvalidSource, NotFound
from craftcache.sources import (
    FILENAMES,
    HubSource,
    LocalDirectory,
    LocalFile,
    UrlSource,
    WatchSource,
    check_filename,
    locate,
    parse,
    shown_url,
    url_digest,
    wanted_files,
)

if TYPE_CHECKING:
    from craftcache.sources import Source

SHA256 = "0123456789abcdef" * 4

TEXTS = st.text() | st.from_regex(
    r"(https?://[^/?#]{0,12}(/[^?#]{0,20})?(\?.{0,8})?(#(sha256=)?.{0,8})?"
    r"|watch:.{0,10}|[A-Za-z0-9_.@/-]{0,30})",
    fullmatch=True,
)
"""Anything, and what looks like a source."""


@given(TEXTS)
@example("https://host/%2F")
@example("https://host/..")
@example("https://host/a%00b")
@example("https://host/a%0Ab.th")
@example("https://[::1")
@example("https://host:port/")
@example("org/name@refs/pr/1")
@example("https://host/name.th ?token=x")
def test_any_text_is_a_source_or_invalid(text: str) -> None:
    try:
        source = parse(text)
    except InvalidSource:
        return
    assert parse(source.spelled) == source
    assert parse(source.shown).shown == source.shown
    for name in wanted_files(source):
        assert check_filename(name, source=text) == name


@given(TEXTS)
@example("")
@example("a\0b")
@example("x" * 5000)
@example("~/model")
def test_any_text_is_located_or_refused(text: str) -> None:
    try:
        source = locate(text)
    except (InvalidSource, NotFound):
        return
    if isinstance(source, LocalFile | LocalDirectory):
        assert text
        assert os.path.exists(text)


@given(st.text() | st.from_regex(r"[./\\a-z]{0,12}", fullmatch=True))
def test_no_filename_leads_out_of_its_directory(filename: str) -> None:
    try:
        checked = check_filename(filename, source="org/name")
    except InvalidSource:
        return
    path = PurePosixPath("/cache", checked)
    assert path.is_relative_to("/cache/")
    assert ".." not in path.parts
    assert str(path) == f"/cache/{checked}"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("facebook/musicgen-small", HubSource("facebook/musicgen-small")),
        ("facebook/musicgen-small@main", HubSource("facebook/musicgen-small")),
        ("org/name@v1.0", HubSource("org/name", "v1.0")),
        ("org/name@refs/pr/1", HubSource("org/name", "refs/pr/1")),
        ("t5-base", HubSource("t5-base")),
        ("watch:my-run", WatchSource("my-run")),
        ("https://host/model.th", UrlSource("https://host/model.th")),
        (
            "https://host/955717e8-8726e21a.th",
            UrlSource(
                "https://host/955717e8-8726e21a.th", digest=Digest("sha256-prefix", "8726e21a")
            ),
        ),
        (
            f"https://host/model.th#sha256={SHA256}",
            UrlSource("https://host/model.th", digest=Digest("sha256", SHA256)),
        ),
        ("https://host/run/", UrlSource("https://host/run/", is_export=True)),
        ("https://host", UrlSource("https://host/", is_export=True)),
        (
            "https://host/run/state_dict.bin",
            UrlSource("https://host/run/", filename="state_dict.bin", is_export=True),
        ),
        (
            f"https://host/run/state_dict.bin?key=1#sha256={SHA256}",
            UrlSource(
                "https://host/run/?key=1",
                filename="state_dict.bin",
                digest=Digest("sha256", SHA256),
                is_export=True,
            ),
        ),
    ],
)
def test_what_a_name_stands_for(text: str, source: Source) -> None:
    assert parse(text) == source
    assert locate(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        " org/name",
        "org/name\n",
        "a/b/c",
        "org//name",
        "../name",
        "org/name.git",
        "org/na--me",
        "org/name@",
        "org/name@a..b",
        "watch:",
        "watch:../x",
        "ftp://host/x.th",
        "s3://bucket/x",
        "file:///etc/passwd",
        "https://",
        "https://user:secret@host/x.th",
        "https://host/x.th#sha256=12",
        "https://host/a%2F",
        "x" * 5000,
    ],
)
def test_what_is_no_source(text: str) -> None:
    with pytest.raises(InvalidSource) as caught:
        parse(text)
    assert caught.value.hint
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_digest_is_part_of_what_is_said_of_a_url_and_not_of_its_name() -> None:
    source = parse(f"https://host/run/state_dict.bin?key=1#sha256={SHA256}")
    assert isinstance(source, UrlSource)
    assert str(source) == "https://host/run/?key=1"
    assert source.shown == "https://host/run/?..."
    assert source.file_url("state_dict.bin") == "https://host/run/state_dict.bin?key=1"
    assert source.file_digest("state_dict.bin") == Digest("sha256", SHA256)
    assert source.file_digest("compression_state_dict.bin") is None


@pytest.mark.parametrize(
    ("url", "digits"),
    [
        ("https://host/resnet-5c106cde.pth", "5c106cde"),
        ("https://host/a-5c106cde.tar.gz", "5c106cde"),
        ("https://host/model-00001-of-00002.bin", None),
        ("https://host/model-5C106CDE.bin", None),
        ("https://host/model.bin", None),
        ("https://host/955717e8/model.bin", None),
    ],
)
def test_the_hash_in_a_torch_hub_name(url: str, digits: str | None) -> None:
    digest = url_digest(url)
    assert (digest.hex if digest else None) == digits


def test_what_is_shown_of_a_url_carries_no_secret() -> None:
    shown = shown_url("https://user:secret@host:8443/a/b.th?token=secret#secret")
    assert shown == "https://host:8443/a/b.th"


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_existing_path_wins_over_everything_else(in_tmp_path: Path) -> None:
    (in_tmp_path / "org").mkdir()
    (in_tmp_path / "org" / "name").write_bytes(b"")
    (in_tmp_path / "watch:x").mkdir()
    assert locate("org/name") == LocalFile(Path("org/name"))
    assert locate("org") == LocalDirectory(Path("org"))
    assert locate("watch:x") == LocalDirectory(Path("watch:x"))
    assert locate("org/other") == HubSource("org/other")


def test_a_directory_that_hides_a_hub_id_is_said_to(
    in_tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (in_tmp_path / "org" / "name").mkdir(parents=True)
    with caplog.at_level(logging.INFO, "craftcache"):
        assert locate("org/name") == LocalDirectory(Path("org/name"))
        (record,) = caplog.records
        assert "org/name" in record.getMessage()
        assert "Hub" in record.getMessage()
        locate("./org/name")
        locate(str(in_tmp_path / "org" / "name"))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("text", ["./org/name", "/nothing/there", "../x", "~/model"])
def test_what_is_written_as_a_path_is_no_hub_id(in_tmp_path: Path, text: str) -> None:
    with pytest.raises(NotFound) as caught:
        locate(text)
    assert caught.value.source == text


def test_an_empty_name_is_not_the_current_directory(in_tmp_path: Path) -> None:
    with pytest.raises(InvalidSource):
        locate("")


def test_the_files_that_a_request_means() -> None:
    pair = tuple(FILENAMES.values())
    assert wanted_files(parse("org/name")) == pair
    assert wanted_files(parse("org/name"), ("a.th",)) == ("a.th",)
    assert wanted_files(parse("https://host/run/")) == pair
    assert wanted_files(parse("https://host/a%20b.th?x=1"), ("other",)) == ("a b.th",)


@pytest.mark.parametrize(
    "repo_id", ["n" * 96, f"org/{'n' * 96}", f"{'o' * 96}/{'n' * 96}", f"{'o' * 50}/{'n' * 50}"]
)
def test_the_limit_of_96_characters_is_each_names_as_in_the_library(repo_id: str) -> None:
    validate_repo_id(repo_id)
    assert parse(repo_id) == HubSource(repo_id)
    assert parse(f"{repo_id}@{'a' * 40}") == HubSource(repo_id, "a" * 40)
    too_long = f"{repo_id}{'n' * 90}"
    with pytest.raises(HFValidationError):
        validate_repo_id(too_long)
    with pytest.raises(InvalidSource):
        parse(too_long)
