"""What the Hub says of a file: its commit, validator, size and address.

The only module that calls huggingface_hub for metadata, and so the only one that meets its
errors. All calls block.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from craftcache.digests import Digest, Promise
from craftcache.errors import (
    AccessDenied,
    CraftcacheError,
    InvalidSource,
    NotFound,
    Offline,
    Unavailable,
)
from craftcache.sources import is_commit

if TYPE_CHECKING:
    from craftcache.sources import HubSource

__all__ = ["HubFile", "hub_endpoint", "describe", "list_files"]

DEFAULT_ENDPOINT = "https://huggingface.co"


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


def hub_endpoint() -> str:
    """The Hub's address, from ``HF_ENDPOINT``, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def describe(
    source: HubSource,
    filename: str,
    *,
    revision: str,
    endpoint: str,
    token: str | None,
    timeout: float,
) -> HubFile:
    """Ask the Hub for one file at ``revision`` (one HEAD request).

    Args:
        source: The repository; errors name it.
        filename: As the repository lists it.
        revision: A branch, tag or commit.
        endpoint: The Hub's address.
        token: Sent to the Hub only; None sends none.
        timeout: Seconds without an answer.

    Raises:
        NotFound: No such repository, revision or file, or a private one that the token may not see.
        AccessDenied: Gated, and not granted to the token.
        Unavailable: The Hub does not answer, or not sensibly.
        Offline: ``HF_HUB_OFFLINE`` is set.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        url = hf_hub_url(source.repo_id, filename, revision=revision, endpoint=endpoint)
        metadata = get_hf_file_metadata(url, token=token or False, timeout=timeout)
    except Exception as error:  # the HTTP library behind it differs by version
        raise _translated(error, source, filename, revision, has_token=bool(token)) from error
    commit, etag = metadata.commit_hash, metadata.etag
    digest = Digest.from_hub_etag(etag or "")
    # The commit becomes a directory's name and the etag a file's: neither is taken on trust.
    if commit is None or not is_commit(commit) or etag is None or digest is None:
        raise Unavailable(
            f"the Hub's answer for {filename} lacks a commit or a digest, or they are malformed",
            source=source.shown,
            hint="Is HF_ENDPOINT a Hub, or a proxy that drops its headers?",
            retryable=False,
        )
    return HubFile(
        filename=filename,
        commit=commit,
        etag=etag,
        promise=Promise(size=metadata.size, digest=digest),
        url=hf_hub_url(source.repo_id, filename, revision=commit, endpoint=endpoint),
    )


def list_files(
    source: HubSource, *, endpoint: str, token: str | None, timeout: float
) -> tuple[str, ...]:
    """Ask the Hub which files a repository has at its revision (one request).

    Args:
        source: The repository.
        endpoint: The Hub's address.
        token: Sent to the Hub only; None sends none.
        timeout: Seconds without an answer.

    Raises:
        CraftcacheError: As for describe.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=endpoint, token=token or False)
        info = api.model_info(source.repo_id, revision=source.revision, timeout=timeout)
        return tuple(sibling.rfilename for sibling in info.siblings or ())
    except Exception as error:  # the HTTP library behind it differs by version
        what = "list of files"
        raise _translated(error, source, what, source.revision, has_token=bool(token)) from error


def _translated(
    error: Exception, source: HubSource, filename: str, revision: str, *, has_token: bool
) -> CraftcacheError:
    from huggingface_hub import errors as hub_errors

    shown = source.shown
    match error:
        case hub_errors.HFValidationError():
            return InvalidSource("malformed Hub id", source=shown, hint="Write it as org/name")
        case hub_errors.OfflineModeIsEnabled():
            return Offline(
                "HF_HUB_OFFLINE is set", source=shown, hint="Unset it, or warm the model first"
            )
        case hub_errors.GatedRepoError():
            return AccessDenied(
                "the repository is gated" + (" and not granted to this token" if has_token else ""),
                source=shown,
                hint="Ask for access on its page, then set HF_TOKEN to a token that has it",
            )
        case hub_errors.RepositoryNotFoundError():
            return NotFound(
                "no such repository, or a private one that "
                + ("this token may not see" if has_token else "needs a token"),
                source=shown,
                hint="Check the spelling; for a private repository set HF_TOKEN",
            )
        case hub_errors.RevisionNotFoundError():
            return NotFound(
                f"no revision {revision}",
                source=shown,
                hint="Name a branch, a tag or a full commit of the repository",
            )
        case hub_errors.EntryNotFoundError():
            return NotFound(
                f"no file {filename} at {revision}",
                source=shown,
                hint="An export has state_dict.bin and compression_state_dict.bin; check the "
                "repository's files",
            )
    return _from_status(error, shown)


def _from_status(error: Exception, shown: str) -> CraftcacheError:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        return AccessDenied(
            f"the Hub answers {status}",
            source=shown,
            hint="Set HF_TOKEN to a token that may read the repository",
        )
    if status == 404:
        return NotFound("the Hub answers 404", source=shown, hint="Check the spelling")
    if status is not None:
        return Unavailable(
            f"the Hub answers {status}",
            source=shown,
            hint="Try again later",
            retryable=status in (408, 425, 429) or status >= 500,
            retry_after=_seconds(response.headers.get("Retry-After")),
        )
    return Unavailable(
        f"the Hub cannot be reached ({type(error).__name__})",
        source=shown,
        hint="Check the network and HF_ENDPOINT, or warm the model while the Hub is reachable",
    )


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdecimal() else None
