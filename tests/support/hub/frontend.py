"""What the Hub's own origin answers: files, the API, and its errors with their codes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .content import Content, Data
from .faults import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiohttp import web

    from .repos import Entry, Repo

__all__ = ["Frontend"]

_DATE = "2024-01-01T00:00:00.000Z"
_NO_PAGE = "Sorry, we can't find the page you are looking for."
_API_WORDS = ("paths-info", "refs", "revision", "tree")


class _Refused(Exception):
    """The request ends here, with ``delivery``."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        shown = {"X-Error-Message": message, "Content-Type": "text/plain", **(headers or {})}
        if code is not None:
            shown["X-Error-Code"] = code
        self.delivery = Delivery(Data(message.encode()), status=status, headers=shown)


class Frontend:
    """The Hub without its CDN.

    Attributes:
        renamed: New ids by old ones.
        grants: By token, the gated and private repositories that it may read.

    Args:
        sign: Gives the signed URL of an LFS file, of a repository id, filename and content.
    """

    def __init__(self, sign: Callable[[str, str, Content], str]) -> None:
        self.renamed: dict[str, str] = {}
        self.grants: dict[str, set[str]] = {}
        self._repos: dict[str, Repo] = {}
        self._sign = sign

    def add(self, repo: Repo) -> Repo:
        self._repos[repo.repo_id] = repo
        return repo

    async def deliver(self, request: web.Request) -> Delivery:
        raw = request.rel_url.raw_path.strip("/").split("/")
        segments = [unquote(segment) for segment in raw]
        try:
            if segments[:2] == ["api", "models"]:
                return await self._api(request, segments[2:])
            if "resolve" in segments[1:3]:
                at = segments.index("resolve", 1)
                repo_id, rest = "/".join(segments[:at]), segments[at + 1 :]
                if len(rest) > 1:
                    return await self._file(request, repo_id, rest[0], "/".join(rest[1:]))
            raise _Refused(404, None, _NO_PAGE)
        except _Refused as refused:
            return refused.delivery

    # -- files ---------------------------------------------------------------------------------

    async def _file(
        self, request: web.Request, repo_id: str, revision: str, filename: str
    ) -> Delivery:
        repo = self._repo(request, repo_id)
        self._check_gate(request, repo)
        commit = _commit(repo, revision)
        known = {"X-Repo-Commit": commit}
        entry = repo.tree(commit).get(filename)
        if entry is None:
            raise _Refused(404, "EntryNotFound", "Entry not found", known)
        etag = await asyncio.to_thread(lambda: entry.etag)
        if not entry.lfs:
            return Delivery(entry.content, headers=known, etag=etag)
        location = self._sign(repo.repo_id, filename, entry.content)
        headers = known | {
            "Location": location,
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(entry.content.size),
            "Accept-Ranges": "bytes",
            "Content-Type": "text/plain",
        }
        body = Data(f"Found. Redirecting to {location}".encode())
        return Delivery(body, status=302, headers=headers)

    # -- the API -------------------------------------------------------------------------------

    async def _api(self, request: web.Request, segments: list[str]) -> Delivery:
        short = len(segments) < 2 or segments[1] in _API_WORDS  # "t5-base" rather than "org/name"
        at = 1 if short else 2
        repo_id, rest = "/".join(segments[:at]), segments[at:]
        repo = self._repo(request, repo_id)
        if rest == ["refs"]:
            return _json(_refs(repo))
        commit = _commit(repo, rest[1] if len(rest) > 1 else "main")
        tree = repo.tree(commit)
        match rest[:1]:
            case [] | ["revision"]:
                blobs = "blobs" in request.query
                return _json(await asyncio.to_thread(_model, repo, commit, blobs=blobs))
            case ["tree"]:
                under = "/".join(rest[2:])
                inside = [
                    e for path, e in tree.items() if not under or path.startswith(f"{under}/")
                ]
                return _json(await asyncio.to_thread(_listed, inside))
            case ["paths-info"]:
                paths = await _wanted_paths(request)
                named = [tree[path] for path in paths if path in tree]
                return _json(await asyncio.to_thread(_listed, named))
            case _:
                raise _Refused(404, None, _NO_PAGE)

    # -- who may -------------------------------------------------------------------------------

    def _token(self, request: web.Request) -> str | None:
        given = request.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token not in self.grants:
            raise _Refused(401, None, "Invalid credentials in Authorization header")
        return token

    def _repo(self, request: web.Request, repo_id: str) -> Repo:
        token = self._token(request)
        if repo_id in self.renamed:
            location = request.rel_url.raw_path.replace(repo_id, self.renamed[repo_id], 1)
            raise _Refused(307, None, "Temporary Redirect", {"Location": location})
        repo = self._repos.get(repo_id)
        if repo is None or (repo.private and repo_id not in self._granted(token)):
            if token is None:
                raise _Refused(401, "RepoNotFound", "Invalid username or password.")
            raise _Refused(404, "RepoNotFound", "Repository not found")
        return repo

    def _check_gate(self, request: web.Request, repo: Repo) -> None:
        token = self._token(request)
        if not repo.gated or repo.repo_id in self._granted(token):
            return
        place = f"Access to model {repo.repo_id} is restricted"
        if token is None:
            raise _Refused(401, "GatedRepo", f"{place}. You must be authenticated to access it.")
        raise _Refused(403, "GatedRepo", f"{place} and you are not in the authorized list.")

    def _granted(self, token: str | None) -> set[str]:
        return set() if token is None else self.grants[token]


def _commit(repo: Repo, revision: str) -> str:
    commit = repo.resolve(revision)
    if commit is None:
        raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def _json(value: object) -> Delivery:
    body = Data(json.dumps(value).encode())
    return Delivery(body, status=200, headers={"Content-Type": "application/json"})


async def _wanted_paths(request: web.Request) -> list[str]:
    if request.content_type == "application/json":
        return list((await request.json())["paths"])
    return [str(path) for path in (await request.post()).getall("paths", [])]


def _listed(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    return [_described(entry) for entry in entries]


def _described(entry: Entry) -> dict[str, Any]:
    described: dict[str, Any] = {
        "type": "file",
        "path": entry.path,
        "size": entry.content.size,
        "oid": entry.git_oid,
    }
    if entry.lfs:
        described["lfs"] = {
            "oid": entry.content.sha256,
            "size": entry.content.size,
            "pointerSize": 134,
        }
    return described


def _model(repo: Repo, commit: str, *, blobs: bool) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = []
    for path, entry in repo.tree(commit).items():
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            described = _described(entry)
            sibling |= {"size": described["size"], "blobId": described["oid"]}
            if entry.lfs:
                sibling["lfs"] = {
                    "sha256": entry.content.sha256,
                    "size": entry.content.size,
                    "pointerSize": 134,
                }
        siblings.append(sibling)
    return {
        "_id": "0" * 24,
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "sha": commit,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "createdAt": _DATE,
        "lastModified": _DATE,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }


def _refs(repo: Repo) -> dict[str, Any]:
    def listed(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
            for name, commit in refs.items()
        ]

    return {
        "branches": listed("heads", repo.refs(tags=False)),
        "tags": listed("tags", repo.refs(tags=True)),
        "converts": [],
    }
