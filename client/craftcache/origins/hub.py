"""What the Hub says of a file: its commit, validator, size and address.

Asked by HTTP as huggingface_hub asks, and answered as that library understands it, but under the
same rules for proxies and certificates as the bytes. All calls block.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from craftcache.digests import Digest, Promise
from craftcache.errors import AccessDenied, CraftcacheError, NotFound, Offline, Unavailable
from craftcache.network.locations import MAX_REDIRECTS, REDIRECTS, origin_of, redirect_target
from craftcache.network.token import OWN_PLACE, authorization
from craftcache.sources import is_commit, shown_url

if TYPE_CHECKING:
    import httpx

    from craftcache.network.exchange import Exchange
    from craftcache.sources import HubSource

__all__ = [
    "HubApi",
    "HubFile",
    "Listing",
    "hub_endpoint",
    "commit_origin",
    "invalid_token",
]

DEFAULT_ENDPOINT = "https://huggingface.co"

LIST = "list of files"
"""What stands for a file's name in a question for all names."""

MAX_LIST_BYTES = 64 * 1024 * 1024
"""Bytes of an answer that lists a repository's files, of which the largest have 100,000."""

_YES = frozenset({"1", "ON", "YES", "TRUE"})


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository, pinned to a commit.

    Attributes:
        filename: As the repository lists it.
        commit: The commit that was found for the revision asked for.
        etag: The name of its blob: a sha256, or a git blob sha1.
        promise: Size and digest.
        url: At the Hub, by commit; answers with the bytes or with a redirect to them.
    """

    filename: str
    commit: str
    etag: str
    promise: Promise
    url: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a repository at one commit.

    Attributes:
        commit: The commit.
        filenames: Their names.
    """

    commit: str
    filenames: tuple[str, ...]


def hub_endpoint() -> str:
    """The Hub's address, from ``HF_ENDPOINT``, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def commit_origin(endpoint: str, source: HubSource, commit: str) -> str:
    """Where the files of a commit come from, as recorded and shown: without a secret."""
    return f"{shown_url(endpoint)}/{source.repo_id}/resolve/{commit}"


@dataclass(frozen=True, slots=True)
class HubApi:
    """A Hub, or a mirror that answers as one, and how it is asked. All methods block.

    Attributes:
        endpoint: Its address, without a slash at its end.
        token: Access token, sent to this address only; None sends none.
        timeout: Seconds without an answer.
        ca: Path of the only certificates believed; None for those of all origins.
        token_place: Where the token belongs, for whoever lacks one.
    """

    endpoint: str
    token: str | None = field(repr=False)
    timeout: float
    ca: str | None = None
    token_place: str = OWN_PLACE

    def describe(self, source: HubSource, filename: str, revision: str) -> HubFile:
        """Ask for one file at ``revision`` (one HEAD request).

        Args:
            source: The repository; errors name it.
            filename: As the repository lists it.
            revision: A branch, tag or commit.

        Raises:
            NotFound: No such repository, revision or file, or a private one that the token may not
                see.
            AccessDenied: Gated, and not granted to the token; or the token is invalid.
            Unavailable: The Hub does not answer, or not sensibly.
            Offline: ``HF_HUB_OFFLINE`` is set.
        """
        found = self._describe(_Question(self, source, filename, revision))
        digest = Digest.from_hub_etag(found.etag)
        # The commit becomes a directory's name and the etag a file's: neither is taken on trust.
        if not is_commit(found.commit) or digest is None:
            hint = "Is HF_ENDPOINT a Hub, or a proxy that drops its headers?"
            if found.leads_to:
                hint = f"It redirects to {found.leads_to}: is that what HF_ENDPOINT should be?"
            raise Unavailable(
                f"the Hub's answer for {filename} has no commit or digest, or a malformed one",
                source=source.shown,
                hint=hint,
                retryable=False,
            )
        return HubFile(
            filename=filename,
            commit=found.commit,
            etag=found.etag,
            promise=Promise(size=found.size, digest=digest),
            url=self._file_url(source, found.commit, filename),
        )

    def filenames(self, source: HubSource) -> tuple[str, ...]:
        """Ask which files a repository has at its own revision (one request).

        Raises:
            CraftcacheError: As for describe.
        """
        return self._list(_Question(self, source, LIST, source.revision)).filenames

    def listing(self, source: HubSource, revision: str) -> Listing:
        """Ask which files a repository has at ``revision``, and which commit that names.

        Raises:
            CraftcacheError: As for describe.
        """
        listing = self._list(_Question(self, source, LIST, revision))
        if not is_commit(listing.commit):
            raise _unreadable(source)
        return listing

    def _describe(self, question: _Question) -> _Found:
        """Ask for a file's headers, as far as the Hub's own origin leads."""
        from craftcache.network.exchange import location_of

        source = question.source
        url = self._file_url(source, question.revision, question.filename)
        home, commit, size = origin_of(url), "", None
        credentials, exchange = self._exchange(source)
        with exchange:
            for _ in range(MAX_REDIRECTS + 1):
                response = exchange.ask("HEAD", url, credentials)
                response.close()
                headers, status = response.headers, response.status_code
                if status not in REDIRECTS and status != 200:
                    raise question.refusal(response)
                commit = commit or headers.get("X-Repo-Commit", "")
                size = _number(headers.get("X-Linked-Size")) if size is None else size
                linked = headers.get("X-Linked-Etag")
                if status == 200 and size is None:
                    size = _number(headers.get("Content-Length"))
                if status == 200 or linked is not None:
                    return _Found(commit, _unquoted(linked or headers.get("ETag")), size, None)
                url = redirect_target(url, location_of(response), source=source.shown)
                if origin_of(url) != home:  # no place for the token, nor to be believed
                    leads_to = "{}://{}:{}".format(*origin_of(url))
                    return _Found(commit, _unquoted(headers.get("ETag")), size, leads_to)
        raise Unavailable(
            f"{shown_url(url)} redirects more than {MAX_REDIRECTS} times",
            source=source.shown,
            hint="Check HF_ENDPOINT",
            retryable=False,
        )

    def _list(self, question: _Question) -> Listing:
        source = question.source
        revision = quote(question.revision, safe="")
        url = f"{self.endpoint}/api/models/{source.repo_id}/revision/{revision}"
        credentials, exchange = self._exchange(source)
        with exchange:
            response = exchange.follow("GET", url, {}, credentials)
            if response.status_code != 200:
                raise question.refusal(response)
            try:
                return _listed(_body(response, exchange, url))
            except (ValueError, KeyError, TypeError):
                raise _unreadable(source) from None

    def _exchange(self, source: HubSource) -> tuple[dict[str, str], Exchange]:
        """The headers with the credentials, and the connection, for questions about ``source``."""
        from craftcache.network.exchange import Exchange

        _check_online(source)
        credentials = authorization(self.token, source=source.shown, place=self.token_place)
        return credentials, Exchange(
            source.shown, read_seconds=self.timeout, connect_seconds=self.timeout, ca=self.ca
        )

    def _file_url(self, source: HubSource, revision: str, filename: str) -> str:
        commit = quote(revision, safe="")
        return f"{self.endpoint}/{source.repo_id}/resolve/{commit}/{quote(filename)}"


def _unreadable(source: HubSource) -> Unavailable:
    return Unavailable(
        "the Hub's list of files cannot be read",
        source=source.shown,
        hint="Is HF_ENDPOINT a Hub?",
        retryable=False,
    )


def invalid_token(where: str, *, source: str, place: str = OWN_PLACE) -> AccessDenied:
    """What the user is told of a token that ``where`` does not know; it belongs in ``place``."""
    return AccessDenied(
        f"the Hub token is invalid or expired: {where} answers 401 to it",
        source=source,
        hint=f"Put a valid one into {place}, or none for what is public",
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What the headers of an answer, and of the redirects before it, say."""

    commit: str
    etag: str
    size: int | None
    leads_to: str | None


@dataclass(frozen=True, slots=True)
class _Question:
    """The kind of thing that was asked for, for the message of a refusal."""

    api: HubApi
    source: HubSource
    filename: str
    revision: str

    def refusal(self, response: httpx.Response) -> CraftcacheError:
        """The error for a response that refuses, by the Hub's own code for it."""
        shown, status = self.source.shown, response.status_code
        has_token = bool(self.api.token)
        match response.headers.get("X-Error-Code"):
            case "GatedRepo":
                return AccessDenied(
                    "the repository is gated"
                    + (" and not granted to this token" if has_token else ""),
                    source=shown,
                    hint="Ask for access on its page, then put a token that has it into "
                    f"{self.api.token_place}",
                )
            case "RevisionNotFound":
                return NotFound(
                    f"no revision {self.revision}",
                    source=shown,
                    hint="Name a branch, a tag or a full commit of the repository",
                )
            case "EntryNotFound":
                return NotFound(
                    f"no file {self.filename} at {self.revision}",
                    source=shown,
                    hint="An export has state_dict.bin and compression_state_dict.bin; check the "
                    "repository's files",
                )
            case code if status == 401 and has_token:
                return invalid_token("the Hub", source=shown, place=self.api.token_place)
            case code if code == "RepoNotFound" or status == 401:
                return NotFound(
                    "no such repository, or a private one that "
                    + ("this token may not see" if has_token else "needs a token"),
                    source=shown,
                    hint="Check the spelling; for a private repository put a token into "
                    f"{self.api.token_place}",
                )
        if status == 403:
            return AccessDenied(
                "the Hub answers 403",
                source=shown,
                hint=f"Put a token that may read the repository into {self.api.token_place}",
            )
        return _from_status(status, response.headers.get("Retry-After"), shown)


def _check_online(source: HubSource) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        raise Offline(
            "HF_HUB_OFFLINE is set", source=source.shown, hint="Unset it, or warm the model first"
        )


def _body(response: httpx.Response, exchange: Exchange, url: str) -> bytes:
    import httpx

    body = bytearray()
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MAX_LIST_BYTES:
                raise ValueError(len(body))
    except httpx.HTTPError as error:
        raise exchange.failure(error, url) from error
    return bytes(body)


def _listed(body: bytes) -> Listing:
    import json

    answer = json.loads(body)
    names = (str(sibling["rfilename"]) for sibling in answer.get("siblings") or ())
    return Listing(str(answer.get("sha") or ""), tuple(names))


def _from_status(status: int, retry_after: str | None, shown: str) -> CraftcacheError:
    if status == 404:
        return NotFound("the Hub answers 404", source=shown, hint="Check the spelling")
    return Unavailable(
        f"the Hub answers {status}",
        source=shown,
        hint="Try again later",
        retryable=status in (408, 425, 429) or status >= 500,
        retry_after=_number(retry_after),
    )


def _unquoted(etag: str | None) -> str:
    return (etag or "").removeprefix("W/").strip('"')


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and value.isascii() and value.isdecimal() else None
