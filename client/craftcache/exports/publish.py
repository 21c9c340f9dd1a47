"""Publish an export on the Hub: checked before, whole or not at all, pinned to its commit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from craftcache.errors import (
    AccessDenied,
    CraftcacheError,
    IntegrityError,
    InvalidSource,
    NotACheckpoint,
    Unavailable,
)
from craftcache.sources import FILENAMES, HubSource, parse

from .check import check_export

if TYPE_CHECKING:
    from pathlib import Path

    from .check import Checked

__all__ = ["Published", "publish_export"]

UPLOADED = (*FILENAMES.values(), "README.md", "LICENSE*")
"""What of a directory is published: the pair, and what people read."""


@dataclass(frozen=True, slots=True)
class Published:
    """An export on the Hub.

    Attributes:
        source: To load it by, pinned to its commit.
        url: For people.
        checked: Result of its check.
    """

    source: str
    url: str
    checked: Checked


def publish_export(directory: Path, repo_id: str, *, private: bool, message: str) -> Published:
    """Check an export and upload it in one commit, which is made only when all bytes are there.

    Args:
        directory: The export.
        repo_id: ``org/name``; made if it does not exist.
        private: Whether a repository that is made is private.
        message: Message of the commit.

    Raises:
        NotACheckpoint: It is no export that AudioCraft can load; nothing was uploaded.
        InvalidSource: ``repo_id`` is none.
        AccessDenied: The user's token may not write there.
        IntegrityError: The files were written to meanwhile, so the commit is not what was checked.
        Unavailable: The Hub does not answer.
    """
    source = parse(repo_id)
    if not isinstance(source, HubSource) or source.revision != "main" or "/" not in repo_id:
        raise InvalidSource("it is no repository's id", source=repo_id, hint="Write it org/name")
    before = _stamps(directory)
    checked = check_export(directory)
    if not checked.is_good:
        raise NotACheckpoint(
            "; ".join(checked.problems),
            source=str(directory),
            hint="craftcache export check says more",
        )
    try:
        commit, url = _upload(directory, repo_id, private=private, message=message)
    except Exception as error:  # the HTTP library behind it differs by version
        raise _translated(error, repo_id) from error
    if _stamps(directory) != before:
        raise IntegrityError(
            f"it was written to while it was uploaded; {repo_id}@{commit} is not what was checked",
            source=str(directory),
            hint="Publish a directory that nobody writes to",
        )
    return Published(f"{repo_id}@{commit}", url, checked)


def _upload(directory: Path, repo_id: str, *, private: bool, message: str) -> tuple[str, str]:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=directory,
        repo_type="model",
        commit_message=message,
        allow_patterns=list(UPLOADED),
    )
    return commit.oid, commit.commit_url


def _stamps(directory: Path) -> list[tuple[int, int, int] | None]:
    stamps: list[tuple[int, int, int] | None] = []
    for name in FILENAMES.values():
        try:
            status = os.stat(directory / name)
            stamps.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError:
            stamps.append(None)
    return stamps


def _translated(error: Exception, repo_id: str) -> CraftcacheError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        return AccessDenied(
            "the Hub does not let this user write there",
            source=repo_id,
            hint="Log in with huggingface-cli login, with a token that may write",
        )
    return Unavailable(
        f"it was not uploaded ({type(error).__name__}: {str(error).strip()[:200]})",
        source=repo_id,
        hint="Try again; nothing is visible before all of it is there",
        retryable=status is None or status >= 500,
    )
