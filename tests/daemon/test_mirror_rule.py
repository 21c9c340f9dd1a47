"""The setting ``mirrors``: what it may say, and which addresses it means."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from craftcache.config import ConfigError
from craftcached.mirror_rule import HUB, MirrorRule
from craftcached.settings_reading import load_settings

HUB_ENDPOINT = "https://huggingface.co"

DOCUMENT = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text()


def loaded(tmp_path: Path, text: str = "", **environment: str) -> tuple[MirrorRule, ...]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_settings({}, environment=environment, config_file=file).mirrors


def test_a_table_says_all_of_it(tmp_path: Path) -> None:
    [rule] = loaded(
        tmp_path,
        """
        [[mirrors]]
        of = "https://models.example.com/exports"
        url = "https://mirror.example.com:8443/"
        ca = "/etc/ca.pem"
        weight = 2
        forward_token = true
        metadata = false
        slice_bytes = 4096
        patience = 1.5
        """,
    )
    assert rule == MirrorRule(
        of="https://models.example.com/exports/",
        url="https://mirror.example.com:8443",
        ca="/etc/ca.pem",
        weight=2,
        forward_token=True,
        metadata=False,
        slice_bytes=4096,
        patience=1.5,
    )
    assert rule.name == "mirror.example.com:8443"


def test_the_environment_says_what_and_where(tmp_path: Path) -> None:
    mirrors = "hub=http://mirror:8080,https://models.example.com/=https://m2:8443"
    hub, other = loaded(tmp_path, CRAFTCACHE_MIRRORS=mirrors)
    assert (hub.of, hub.url, hub.insecure) == (HUB, "http://mirror:8080", True)
    assert (other.of, other.url, other.insecure) == (
        "https://models.example.com/",
        "https://m2:8443",
        False,
    )


def test_the_command_line_says_it_likewise(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    settings = load_settings(
        {"mirrors": ("hub=https://m",)}, environment={}, config_file=tmp_path / "config.toml"
    )
    assert [rule.url for rule in settings.mirrors] == ["https://m"]


WRONG: list[dict[str, Any] | str] = [
    {"of": "hub"},
    {"url": "https://m"},
    {"of": "hub", "url": "http://m"},
    {"of": "hub", "url": "ftp://m"},
    {"of": "hub", "url": "https://user:word@m"},
    {"of": "hub", "url": "https://m?x=1"},
    {"of": "hub", "url": "https://"},
    {"of": "hub", "url": "https://m:99999"},
    {"of": "hub", "url": "https://m", "weight": -1},
    {"of": "hub", "url": "https://m", "weight": float("nan")},
    {"of": "hub", "url": "https://m", "weight": True},
    {"of": "hub", "url": "https://m", "slice_bytes": 1},
    {"of": "hub", "url": "https://m", "patience": 0},
    {"of": "hub", "url": "https://m", "ca": 1},
    {"of": "hub", "url": "https://m", "insecure": "yes"},
    {"of": "hub", "url": "https://m", "colour": "red"},
    {"of": "https://a/?q=1", "url": "https://m"},
    {"of": "ftp://a/", "url": "https://m"},
    "hub",
    "hub=mirror:8080",
]


@pytest.mark.parametrize("raw", WRONG, ids=str)
def test_what_cannot_be_meant_is_an_error(raw: dict[str, Any] | str) -> None:
    with pytest.raises(ConfigError) as raised:
        MirrorRule.parse(raw)
    assert raised.value.hint


def test_the_error_says_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^CRAFTCACHE_MIRRORS: "):
        loaded(tmp_path, CRAFTCACHE_MIRRORS="hub")


@pytest.mark.parametrize(
    ("of", "url", "address"),
    [
        ("hub", f"{HUB_ENDPOINT}/a/b?x=1", "https://m/p/a/b?x=1"),
        ("hub", "https://HUGGINGFACE.co:443/a%20b", "https://m/p/a%20b"),
        ("hub", "https://huggingface.co.example/a", None),
        ("hub", "http://huggingface.co/a", None),
        ("models.example.com", "https://models.example.com/x/y", "https://m/p/x/y"),
        ("https://h/exports", "https://h/exports/x", "https://m/p/x"),
        ("https://h/exports", "https://h/exports2/x", None),
        ("https://h/exports", "https://h/exports/../private/x", None),
        ("https://h:8443/", "https://h/x", None),
    ],
)
def test_an_address_is_that_below_what_it_stands_for(
    of: str, url: str, address: str | None
) -> None:
    rule = MirrorRule.parse({"of": of, "url": "https://m/p"})
    assert rule.address(url, hub_endpoint=HUB_ENDPOINT) == address


def test_the_document_knows_each_key_and_its_default() -> None:
    table = DOCUMENT.partition("## The setting")[2]
    shown = dict(re.findall(r"^\| `(\w+)` \| (\w*) ?\|", table, re.MULTILINE))
    assert set(shown) == {item.name for item in fields(MirrorRule)}
    rule = MirrorRule.parse("hub=https://m")
    for key, default in shown.items():
        value = getattr(rule, key)
        said = f"{value:g}" if isinstance(value, float) else str(value).lower()
        assert default in ("", said), key


def test_the_documents_examples_are_settings(tmp_path: Path) -> None:
    mirror, shared = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    [rule] = loaded(tmp_path, mirror)
    assert rule.of == HUB
    file = tmp_path / "config.toml"
    file.write_text(shared)
    assert load_settings({}, environment={}, config_file=file).read_only
