"""Repositories as the Hub keeps them: commits of whole trees, branches and tags on them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .content import AnyContent, Content, as_content

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["Entry", "Repo", "LFS_FROM_BYTES"]

LFS_FROM_BYTES = 4096
"""Files of this size or more are LFS files, as are all that end in ``.bin``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of one commit.

    Attributes:
        path: Inside the repository.
        content: Its bytes.
        lfs: Whether it is kept by its sha256 on the CDN rather than as a git blob on the Hub.
    """

    path: str
    content: Content
    lfs: bool

    @property
    def etag(self) -> str:
        """What the Hub gives as the file's (linked) ETag, unquoted."""
        return self.content.sha256 if self.lfs else self.content.git_sha1

    @property
    def git_oid(self) -> str:
        """The id of the git blob, which for an LFS file is its pointer."""
        if not self.lfs:
            return self.content.git_sha1
        pointer = (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.content.sha256}\nsize {self.content.size}\n"
        ).encode()
        return hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()


class Repo:
    """One repository; made by the hub.

    Attributes:
        repo_id: ``org/name``.
        private: Whether only granted tokens see that it exists.
        gated: Whether only granted tokens may read its files.
    """

    def __init__(self, repo_id: str, *, private: bool, gated: bool) -> None:
        self.repo_id = repo_id
        self.private = private
        self.gated = gated
        self._refs: dict[str, str] = {}
        self._tags: set[str] = set()
        self._trees: dict[str, Mapping[str, Entry]] = {}

    def commit(
        self,
        files: Mapping[str, AnyContent | None],
        *,
        branch: str = "main",
        lfs: Collection[str] | None = None,
    ) -> str:
        """Put ``files`` on top of what ``branch`` holds; None removes a file.

        Args:
            files: By path.
            branch: Moved to the new commit, or made.
            lfs: Exactly those of ``files`` that are LFS files; by size and name if None.

        Returns:
            The commit, 40 hex digits.
        """
        parent = self._refs.get(branch, "")
        tree = dict(self._trees.get(parent, {}))
        for path, given in files.items():
            if given is None:
                del tree[path]
                continue
            content = as_content(given)
            large = content.size >= LFS_FROM_BYTES or path.endswith(".bin")
            tree[path] = Entry(path, content, large if lfs is None else path in lfs)
        name = f"{self.repo_id}\n{branch}\n{parent}\n{len(self._trees)}"
        commit = hashlib.sha1(name.encode()).hexdigest()
        self._trees[commit] = tree
        self._refs[branch] = commit
        return commit

    def branch(self, name: str, commit: str) -> None:
        """Make the branch ``name``, or move it, to ``commit``."""
        self._refs[name] = commit

    def tag(self, name: str, commit: str) -> None:
        """Put the tag ``name`` on ``commit``."""
        self._refs[name] = commit
        self._tags.add(name)

    def refs(self, *, tags: bool) -> dict[str, str]:
        """The tags, or the branches, with their commits."""
        return {name: commit for name, commit in self._refs.items() if (name in self._tags) is tags}

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit names."""
        return revision if revision in self._trees else self._refs.get(revision)

    def tree(self, commit: str) -> Mapping[str, Entry]:
        """All files of a commit, by path."""
        return self._trees[commit]
