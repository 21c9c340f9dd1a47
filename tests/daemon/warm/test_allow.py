"""The setting ``allow``: what its patterns let through, and what they do not."""

from __future__ import annotations

import pytest

from craftcache.sources import parse
from craftcached.warm.allow import is_allowed

ALLOWED = [
    ("*", "org/model"),
    ("*", "https://host/x.th"),
    ("org/*", "org/model"),
    ("org/*", "org/model@dev"),
    ("org/model", "org/model@dev"),
    ("org/model@v?", "org/model@v1"),
    ("org/model@*", "org/model@feature/x"),
    ("https://models.example.com/*", "https://models.example.com/a/b/x.th"),
    ("https://models.example.com/*", "https://MODELS.example.com:443/x.th?sig=1"),
    ("https://*.example.com/*", "https://a.b.example.com/x.th"),
    ("https://example.com", "https://example.com/any/x.th"),
    ("https://example.com/runs/*/export/", "https://example.com/runs/7/export/state_dict.bin"),
    ("http://127.0.0.1:*/x.th", "http://127.0.0.1:8000/x.th"),
    ("https://*", "https://anything/x.th"),
]

REFUSED = [
    ("org/*", "other/model"),
    ("org*", "org-evil/model"),
    ("*/model", "evil/x@a/model"),
    ("org/model@v?", "org/model"),
    ("org/*", "https://org/model"),
    ("https://*.example.com/*", "https://evil.net/x.example.com/m.th"),
    ("https://*.example.com/*", "https://evil.net/.example.com/m.th"),
    ("https://*.example.com/*", "https://evil.net?x=.example.com/m.th"),
    ("https://*.example.com/*", "http://a.example.com/m.th"),
    ("https://example.com/*", "https://example.com:8443/m.th"),
    ("https://example.com/*", "https://example.com.evil.net/m.th"),
    ("https://example?com/*", "https://example/com/m.th"),
    ("https://example.com/a/*", "https://example.com/a/../b/m.th"),
    ("https://example.com/a/*", "https://example.com/a/%2e%2e/b/m.th"),
    ("https://example.com/[ab].th", "https://example.com/a.th"),
    ("https://example.com/*.th", "https://example.com/evil.bin?x.th"),
    ("org/[m]odel", "org/model"),
]


@pytest.mark.parametrize(("pattern", "source"), ALLOWED)
def test_what_a_pattern_names_is_allowed(pattern: str, source: str) -> None:
    assert is_allowed(parse(source), pattern)


@pytest.mark.parametrize(("pattern", "source"), REFUSED)
def test_no_wildcard_reaches_beyond_its_part(pattern: str, source: str) -> None:
    assert not is_allowed(parse(source), pattern)
