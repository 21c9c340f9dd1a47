"""Models and their files, as answers list them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from craftcache.cache.opened import FileInfo
from craftcache.dependencies import DependencyState, UnmetDependency

from .fields import MAX_FILENAME, MAX_REVISION, MAX_SOURCE, TEXT_LIMITS, clipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from craftcache.cache.manifest import FileRecord, Manifest
    from craftcache.dependencies import Dependency

    from .fields import Fields

__all__ = ["CachedModel", "ModelsPage", "file_fields", "parse_file"]

MAX_ORIGIN = TEXT_LIMITS[0]
MAX_MODELS = 4096

MAX_MODEL_FILES = 256
"""Files of one model that a page lists."""

MAX_NEEDS = 64
"""Dependencies of one model on a page, and as many that cannot be warmed."""


def file_fields(info: FileInfo, text_limit: int, *, has_index: bool) -> dict[str, Any]:
    """A file as a JSON object, its origin clipped to ``text_limit``.

    Version 1 requires ``has_index`` for every file, also in a list of models, which sends no
    descriptors.
    """
    return {
        "filename": info.filename,
        "sha256": info.sha256,
        "size": info.size,
        "origin": clipped(info.origin, text_limit),
        "verified_at": info.verified_at.timestamp() if info.verified_at else 0.0,
        "has_index": has_index,
    }


def parse_file(fields: Fields) -> FileInfo:
    """The file with these keys."""
    verified_at = fields.seconds("verified_at")
    fields.flag("has_index")
    return FileInfo(
        filename=fields.text("filename", MAX_FILENAME),
        size=fields.integer("size"),
        origin=fields.text("origin", MAX_ORIGIN, empty=True),
        sha256=fields.sha256("sha256"),
        verified_at=fields.checked(
            lambda: datetime.fromtimestamp(verified_at, timezone.utc), "verified_at"
        ),
    )


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model of the cache, which a load would find without asking its origin.

    Attributes:
        source: The source as shown to people.
        revision: Revision that a load would serve.
        files: Its files that are in place and untouched since they were verified, by name.
        resident_bytes: Bytes of its files in memory; None where that is not known.
        is_pinned: Whether it stays until it is unpinned.
        is_locked: Whether its pages are to stay in memory too.
        needs: Its dependencies, and whether they are cached.
        unmet: Dependencies that no cache can hold.
        is_needed_only: Whether it is cached only as a dependency of other models.
        published_at: When its revision was published, in seconds since the epoch; None where that
            is not known.
        last_used_at: When it was last loaded or warmed, in seconds since the epoch; None where that
            is not known.
        is_superseded: Whether it is an earlier revision, which is the first to go.
        pinned_until: Time at which its pin ends by itself, in seconds since the epoch, or None.
        held_until: Time until which users hold it, in seconds since the epoch, or None.
    """

    source: str
    revision: str
    files: tuple[FileInfo, ...]
    resident_bytes: int | None = None
    is_pinned: bool = False
    is_locked: bool = False
    needs: tuple[DependencyState, ...] = ()
    unmet: tuple[UnmetDependency, ...] = ()
    is_needed_only: bool = False
    published_at: float | None = None
    last_used_at: float | None = None
    is_superseded: bool = False
    pinned_until: float | None = None
    held_until: float | None = None

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        intact: Iterable[FileRecord],
        has_need: Callable[[Dependency], bool],
        *,
        resident_bytes: int | None = None,
        is_pinned: bool = False,
        is_locked: bool = False,
        last_used_at: float | None = None,
        pinned_until: float | None = None,
        held_until: float | None = None,
    ) -> CachedModel:
        """The model that a manifest describes, with the files that are intact."""
        return cls(
            manifest.source,
            manifest.revision,
            tuple(map(FileInfo.recorded, intact)),
            resident_bytes,
            is_pinned,
            is_locked,
            tuple(
                DependencyState(need.parsed.shown, need.why, has_need(need))
                for need in manifest.needs
            ),
            manifest.unmet,
            manifest.needed_only,
            is_superseded=manifest.superseded,
            published_at=manifest.published_at.timestamp(),
            last_used_at=last_used_at,
            pinned_until=pinned_until,
            held_until=held_until,
        )

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The model as a JSON object, origins clipped to ``text_limit``."""
        return {
            "source": self.source,
            "revision": self.revision,
            "files": [file_fields(file, text_limit, has_index=False) for file in self.files],
            "resident_bytes": self.resident_bytes,
            "is_pinned": self.is_pinned,
            "is_locked": self.is_locked,
            "needs": [asdict(need) | {"why": clipped(need.why, text_limit)} for need in self.needs],
            "unmet": [
                {key: clipped(words, text_limit) for key, words in asdict(unmet).items()}
                for unmet in self.unmet
            ],
            "is_needed_only": self.is_needed_only,
            "published_at": self.published_at,
            "last_used_at": self.last_used_at,
            "is_superseded": self.is_superseded,
            "pinned_until": self.pinned_until,
            "held_until": self.held_until,
        }

    @classmethod
    def parse(cls, fields: Fields) -> CachedModel:
        """The model with these keys."""
        return cls(
            source=fields.text("source", MAX_SOURCE),
            revision=fields.text("revision", MAX_REVISION),
            files=tuple(map(parse_file, fields.children("files", MAX_MODEL_FILES))),
            resident_bytes=fields.optional_integer("resident_bytes"),
            is_pinned=fields.optional_flag("is_pinned"),
            is_locked=fields.optional_flag("is_locked"),
            needs=_needs(fields),
            unmet=_unmet(fields),
            is_needed_only=fields.optional_flag("is_needed_only"),
            published_at=fields.optional_seconds("published_at"),
            last_used_at=fields.optional_seconds("last_used_at"),
            is_superseded=fields.optional_flag("is_superseded"),
            pinned_until=fields.optional_seconds("pinned_until"),
            held_until=fields.optional_seconds("held_until"),
        )


@dataclass(frozen=True, slots=True)
class ModelsPage:
    """Some models, in the order of their sources.

    Attributes:
        models: As many models as one message holds.
        next: Value of ``after`` for the request of the next page; empty on the last page.
    """

    models: tuple[CachedModel, ...]
    next: str = ""

    TYPE: ClassVar[str] = "models_page"

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type, origins clipped to ``text_limit``."""
        return {"models": [model.to_fields(text_limit) for model in self.models], "next": self.next}

    @classmethod
    def parse(cls, fields: Fields) -> ModelsPage:
        """The message with these keys."""
        models = tuple(map(CachedModel.parse, fields.children("models", MAX_MODELS)))
        return cls(models, fields.text("next", MAX_SOURCE, empty=True))


def _needs(fields: Fields) -> tuple[DependencyState, ...]:
    """The key ``needs``, which a daemon of an earlier release does not send."""
    if fields.is_null("needs"):
        return ()
    return tuple(
        DependencyState(
            need.text("source", MAX_SOURCE),
            need.text("why", TEXT_LIMITS[0]),
            need.flag("is_cached"),
        )
        for need in fields.children("needs", MAX_NEEDS)
    )


def _unmet(fields: Fields) -> tuple[UnmetDependency, ...]:
    if fields.is_null("unmet"):
        return ()
    return tuple(
        UnmetDependency(*(unmet.text(key, TEXT_LIMITS[0]) for key in ("what", "why", "hint")))
        for unmet in fields.children("unmet", MAX_NEEDS)
    )
