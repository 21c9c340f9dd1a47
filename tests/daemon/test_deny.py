"""What is denied is denied in every spelling that a server takes for the same."""

from __future__ import annotations

import pytest

from craftcache.errors import PolicyDenied
from craftcache.sources import parse
from craftcached.warm.allow import FetchPolicy, is_denied


@pytest.mark.parametrize(
    ("source", "pattern", "denied"),
    [
        ("org/model", "org/*", True),
        ("Org/Model", "org/model", True),
        ("org/model", "Org/Model", True),
        ("org/model@v1", "org/model@v1", True),
        ("org/model@v2", "org/model@v1", False),
        ("other/model", "org/*", False),
        ("org/model", "*", True),
        ("https://a.example/x.th", "*", True),
        ("https://a.example/secret/x.th", "https://a.example/secret/*", True),
        ("https://a.example/SECRET/x.th", "https://a.example/secret/*", False),
        ("https://A.Example./secret/x.th", "https://a.example/secret/*", True),
        ("https://a.example:443/secret/x.th", "https://a.example/secret/*", True),
        ("https://a.example/%73ecret/x.th", "https://a.example/secret/*", True),
        ("https://a.example/open/../secret/x.th", "https://a.example/secret/*", True),
        ("https://a.example/open/%2e%2e/secret/x.th", "https://a.example/secret/*", True),
        ("https://a.example//secret/x.th", "https://a.example/secret/*", True),
        ("https://a.example/secret/", "https://a.example/secret/*", True),
        ("https://a.example/open/x.th?a=/secret/", "https://a.example/secret/*", False),
        ("https://b.example/secret/x.th", "https://a.example/secret/*", False),
        ("https://b.example/x.th", "org/*", False),
    ],
)
def test_what_a_pattern_denies(source: str, pattern: str, denied: bool) -> None:
    parsed = parse(source)
    assert is_denied(parsed, pattern) is denied


@pytest.mark.parametrize(
    ("allow", "deny", "message"),
    [
        (("*",), ("other/*", "org/*"), "this node is told not to fetch it, by 'org/*' in the "),
        (("other/*", "org/mo"), (), "it is none of 'other/*', 'org/mo' in the setting allow"),
        ((), (), "there is no pattern in the setting allow"),
        (tuple(f"o{n}/*" for n in range(10)), (), "'o6/*', 'o7/*' and 2 more in the setting allow"),
    ],
)
def test_the_pattern_that_denies_is_named(
    allow: tuple[str, ...], deny: tuple[str, ...], message: str
) -> None:
    with pytest.raises(PolicyDenied) as caught:
        FetchPolicy(allow, deny).check(parse("org/model"))
    assert message in caught.value.message
    assert caught.value.hint
