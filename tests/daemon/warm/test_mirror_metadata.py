"""Which files a model has is the Hub's word; a mirror's only where the Hub cannot be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from craftcache.errors import AccessDenied, NotFound, Unavailable
from craftcache.origins.policy import UrlPolicy
from craftcache.sources import HubSource, parse
from craftcached.fetch import Mirrors
from craftcached.mirror_rule import MirrorRule
from craftcached.warm.hub import Hub
from craftcached.warm.origins import Origins
from tests.support.hub import Generated, ResetConnection, Status, TestHub, matching

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from craftcached.warm.description import Description

    Ask = Callable[..., Any]

NAME = "state_dict.bin"
CONTENT = Generated(5000, seed=1)


@pytest.fixture
async def mirror() -> AsyncIterator[TestHub]:
    """A mirror that answers as the Hub does: another one, with the same repository."""
    async with TestHub() as running:
        yield running


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def ask(hub: TestHub, mirror: TestHub, events: list[tuple[str, dict[str, Any]]]) -> Iterator[Ask]:
    """Describes a file of a source, by a Hub with a mirror of such a rule."""
    made: list[Hub] = []

    async def describe(text: str = "org/model", *, token: str | None = None, **given: Any) -> Any:
        rule = MirrorRule.parse({"of": "hub", "url": mirror.endpoint, "insecure": True} | given)
        mirrors = Mirrors(
            [rule],
            hub_endpoint=hub.endpoint,
            tell=lambda event, **fields: events.append((event, fields)),
        )
        asked = Hub(endpoint=hub.endpoint, token=token, timeout=5.0, mirrors=mirrors)
        made.append(asked)
        policy = UrlPolicy(insecure_hosts=frozenset(), hub_endpoint=hub.endpoint)
        source = parse(text)
        assert isinstance(source, HubSource)
        return await Origins(asked, policy).of(source).describe((NAME,), known=None, refresh=True)

    yield describe
    for each in made:
        each.close()


@pytest.fixture
def commits(hub: TestHub, mirror: TestHub) -> tuple[str, str]:
    """The commit at the Hub, and one before it that the mirror still takes for the newest."""
    older = mirror.repo("org/model").commit({NAME: CONTENT})
    repo = hub.repo("org/model")
    assert repo.commit({NAME: CONTENT}) == older
    return repo.commit({"README.md": b"new"}), older


def is_mirrors(description: Description, mirror: TestHub) -> bool:
    [file] = description.files
    marked = description.mirror == f"{mirror.endpoint}/org/model/resolve/{description.commit}"
    assert file.remote.is_origin_away is marked
    return marked


async def test_the_hub_is_asked_first_and_the_mirror_told(
    hub: TestHub, mirror: TestHub, ask: Ask, commits: tuple[str, str]
) -> None:
    newest, older = commits
    description = await ask()
    assert (description.commit, is_mirrors(description, mirror)) == (newest, False)
    # By its name and by its commit, so that both are known when the Hub is gone.
    for revision in ("main", older):
        await mirror.wait_for_request(matching(f"*/resolve/{revision}/{NAME}"))


@pytest.mark.parametrize("fault", [ResetConnection(), Status(503), Status(429)], ids=str)
async def test_a_mirrors_word_is_taken_where_the_hub_cannot_be_asked(
    hub: TestHub,
    mirror: TestHub,
    ask: Ask,
    commits: tuple[str, str],
    events: list[tuple[str, dict[str, Any]]],
    fault: Any,
) -> None:
    hub.inject(fault, method=None, times=None)
    description = await ask()
    assert description.commit == commits[1]
    assert is_mirrors(description, mirror)
    [file] = description.files
    assert file.remote.url == hub.resolve_url("org/model", NAME, commits[1])
    assert [event for event, _ in events] == ["mirror_believed"]


async def test_it_is_not_taken_where_that_is_not_wanted(
    hub: TestHub, mirror: TestHub, ask: Ask, commits: tuple[str, str]
) -> None:
    hub.inject(Status(503), method=None, times=None)
    with pytest.raises(Unavailable):
        await ask(metadata=False)
    assert mirror.requests == []


async def test_what_the_hub_refuses_no_mirror_is_asked_for(
    hub: TestHub, mirror: TestHub, ask: Ask
) -> None:
    mirror.repo("org/model").commit({NAME: CONTENT})
    with pytest.raises(NotFound):
        await ask()
    hub.repo("org/model", gated=True).commit({NAME: CONTENT})
    with pytest.raises(AccessDenied):
        await ask()
    assert mirror.requests == []


async def test_what_a_mirror_refuses_is_still_the_hubs_silence(
    hub: TestHub, mirror: TestHub, ask: Ask
) -> None:
    """A mirror's 404 means nothing."""
    hub.inject(Status(503), method=None, times=None)
    with pytest.raises(Unavailable, match="503") as raised:
        await ask()
    assert raised.value.retryable
    assert mirror.count("HEAD") == 1


async def test_a_mirror_that_answers_for_another_commit_is_not_believed(
    hub: TestHub, mirror: TestHub, ask: Ask, commits: tuple[str, str]
) -> None:
    hub.inject(Status(503), method=None, times=None)
    mirror.inject(
        Status(200, {"X-Repo-Commit": "0" * 40, "ETag": f'"{CONTENT.sha256}"'}),
        method="HEAD",
        times=None,
    )
    with pytest.raises(Unavailable, match="503"):
        await ask(f"org/model@{commits[1]}")


@pytest.mark.parametrize("trusted", [False, True])
async def test_the_token_is_for_the_hub_and_trusted_mirrors(
    hub: TestHub, mirror: TestHub, ask: Ask, commits: tuple[str, str], trusted: bool
) -> None:
    for each in (hub, mirror):
        each.grant("hf_secret")
    hub.inject(Status(503), method=None, times=None)
    await ask(token="hf_secret", forward_token=trusted)
    sent = {request.authorization for request in mirror.requests}
    assert sent == ({"Bearer hf_secret"} if trusted else {None})
