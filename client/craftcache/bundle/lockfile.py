"""A lock file: which models, at which commits, made of which bytes.

JSON in UTF-8, version 1::

    {"version": 1,
     "models": [
       {"source": "facebook/musicgen-melody",     as parse reads it; never a signed URL
        "revision": "<40 hex>",                   a commit; of a URL a digest over its files
        "files": [{"filename": "state_dict.bin", "sha256": "<64 hex>", "size": 1336949,
                   "etag": "<40 or 64 hex>"}],    of a URL's file null
        "needed_only": false,                     true: locked for the sake of the others alone
        "needs": ["t5-base"]}]}                   sources of other models of this lock

Readers ignore unknown keys and refuse another version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from craftcache.digests import Digest
from craftcache.errors import CraftcacheError, InvalidSource, NotFound
from craftcache.sources import HubSource, UrlSource, parse
from craftcache.wire.fields import MAX_SOURCE, Fields
from craftcache.wire.locking import lock_fields, parse_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from craftcache.locked import LockedRevision, LockEntry

__all__ = ["LockFile", "LockedModel", "MAX_LOCK_BYTES"]

VERSION = 1

MAX_LOCK_BYTES = 16 * 1024 * 1024
"""Bytes of a lock file; one file takes about 250 of them."""

MAX_MODELS = 10_000
MAX_NEEDS = 64


@dataclass(frozen=True, slots=True)
class LockedModel:
    """One model of a lock file.

    Attributes:
        source: The source.
        lock: Its revision and files.
        needs: Sources of the models that it needs, as shown to people.
    """

    source: HubSource | UrlSource
    lock: LockedRevision
    needs: tuple[str, ...] = ()

    def to_fields(self) -> dict[str, Any]:
        """The model as a JSON object."""
        needs = {"needs": list(self.needs)}
        return {"source": self.source.shown} | lock_fields(self.lock) | needs

    @classmethod
    def parse(cls, fields: Fields) -> LockedModel:
        """The model with these keys."""
        source = parse(fields.text("source", MAX_SOURCE))
        if not isinstance(source, HubSource | UrlSource):
            raise fields.refusal("'source' is neither a Hub id nor a URL")
        lock = parse_lock(fields)
        for entry in lock.files if isinstance(source, HubSource) else ():
            if entry.etag is None or not _is_etag_of(entry):
                raise fields.refusal(f"'etag' of {entry.filename} is not that of its sha256")
        return cls(source, lock, fields.texts("needs", MAX_NEEDS, MAX_SOURCE))


@dataclass(frozen=True, slots=True)
class LockFile:
    """The models of a lock file, those that were named first, then what they need."""

    models: tuple[LockedModel, ...]

    def dump(self) -> bytes:
        """The lock file's content; equal locks have equal bytes."""
        document = {"version": VERSION, "models": [model.to_fields() for model in self.models]}
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, *, name: str) -> LockFile:
        """Read a lock file, trusting nothing.

        Args:
            data: Its content.
            name: Name of the file, for errors.

        Raises:
            InvalidSource: It is malformed, of another version, or names a source that is none.
        """

        def refuse(why: str) -> CraftcacheError:
            return InvalidSource(
                f"{name} is no lock: {why}", hint="craftcache lock SOURCE... prints one"
            )

        try:
            fields = Fields(json.loads(data), refuse)
        except (ValueError, RecursionError):
            raise refuse("it is no JSON") from None
        if fields.whole.get("version") != VERSION:
            raise refuse(f"its version is {fields.whole.get('version')!r}, not {VERSION}")
        models = tuple(map(LockedModel.parse, fields.children("models", MAX_MODELS)))
        if not models or len({model.source.shown for model in models}) != len(models):
            raise refuse("it has no model, or one twice")
        return cls(models)

    def entries(self) -> Iterator[LockEntry]:
        """All files of all models; two may have one content."""
        return (entry for model in self.models for entry in model.lock.files)

    def only(self, sources: Iterable[str]) -> LockFile:
        """The part of the lock that these sources need.

        Raises:
            NotFound: The lock has none of that name.
            InvalidSource: One of them is malformed.
        """
        by_source = {model.source.shown: model for model in self.models}
        chosen: dict[str, LockedModel] = {}
        wanted = [parse(source).shown for source in sources]
        while wanted:
            shown = wanted.pop()
            if shown in chosen:
                continue
            if shown not in by_source:
                raise NotFound("the lock does not name it", source=shown, hint="Make the lock anew")
            chosen[shown] = by_source[shown]
            wanted += by_source[shown].needs
        return LockFile(tuple(model for shown, model in by_source.items() if shown in chosen))


def _is_etag_of(entry: LockEntry) -> bool:
    """Whether a name of a blob can be that of a file with that sha256."""
    digest = Digest.from_hub_etag(entry.etag or "")
    if digest is None:
        return False
    return digest.algorithm == "git-sha1" or digest.hex == entry.sha256
