"""Models and their files, as answers list them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from craftcache.dependencies import DependencyState, UnmetDependency

from .fields import MAX_FILENAME, MAX_REVISION, MAX_SOURCE, TEXT_LIMITS, clipped

if TYPE_CHECKING:
    from .fields import Fields

__all__ = ["ServedFile", "Model", "ModelsPage"]

MAX_ORIGIN = TEXT_LIMITS[0]
MAX_MODELS = 4096

MAX_MODEL_FILES = 256
"""Of one model on a page, which only lists them."""

MAX_NEEDS = 64
"""Of one model, and of what it needs and cannot be warmed."""


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A verified file of a source.

    Attributes:
        filename: Its name inside the source.
        sha256: Of all its bytes, in hex.
        size: Its bytes.
        origin: Where the bytes came from, for people; clipped where the message would be too large.
        verified_at: When they were verified, in seconds since the epoch.
        has_index: Whether the descriptor of its index follows that of its blob. A load always
            brings both and a list of models neither; but version 1 requires the key, and counts
            descriptors by it, so it stays as long as that version is spoken.
    """

    filename: str
    sha256: str
    size: int
    origin: str
    verified_at: float
    has_index: bool

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The file as a JSON object, its origin clipped to ``text_limit``."""
        return {
            "filename": self.filename,
            "sha256": self.sha256,
            "size": self.size,
            "origin": clipped(self.origin, text_limit),
            "verified_at": self.verified_at,
            "has_index": self.has_index,
        }

    @classmethod
    def parse(cls, fields: Fields) -> ServedFile:
        """The file with these keys."""
        return cls(
            filename=fields.text("filename", MAX_FILENAME),
            sha256=fields.sha256("sha256"),
            size=fields.integer("size"),
            origin=fields.text("origin", MAX_ORIGIN, empty=True),
            verified_at=fields.seconds("verified_at"),
            has_index=fields.flag("has_index"),
        )


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the cache: what a ``load`` of its source would serve now.

    Attributes:
        source: As shown to people.
        revision: That would be served.
        files: All that are cached of it, in place and untouched since they were verified.
        resident_bytes: Of its files, that are in memory; None where that is not known.
        is_pinned: Whether it stays until it is unpinned.
        is_locked: Whether its pages are to stay in memory too.
        needs: Other sources that it is of no use without.
        unmet: What it needs as well, and no cache can hold.
        is_needed_only: Whether it is here for the sake of others alone.
    """

    source: str
    revision: str
    files: tuple[ServedFile, ...]
    resident_bytes: int | None = None
    is_pinned: bool = False
    is_locked: bool = False
    needs: tuple[DependencyState, ...] = ()
    unmet: tuple[UnmetDependency, ...] = ()
    is_needed_only: bool = False

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The model as a JSON object, origins clipped to ``text_limit``."""
        return {
            "source": self.source,
            "revision": self.revision,
            "files": [file.to_fields(text_limit) for file in self.files],
            "resident_bytes": self.resident_bytes,
            "is_pinned": self.is_pinned,
            "is_locked": self.is_locked,
            "needs": [
                {
                    "source": need.source,
                    "why": clipped(need.why, text_limit),
                    "is_cached": need.is_cached,
                }
                for need in self.needs
            ],
            "unmet": [
                {
                    "what": clipped(unmet.what, text_limit),
                    "why": clipped(unmet.why, text_limit),
                    "hint": clipped(unmet.hint, text_limit),
                }
                for unmet in self.unmet
            ],
            "is_needed_only": self.is_needed_only,
        }

    @classmethod
    def parse(cls, fields: Fields) -> Model:
        """The model with these keys."""
        return cls(
            source=fields.text("source", MAX_SOURCE),
            revision=fields.text("revision", MAX_REVISION),
            files=tuple(map(ServedFile.parse, fields.children("files", MAX_MODEL_FILES))),
            resident_bytes=fields.optional_integer("resident_bytes"),
            is_pinned=fields.optional_flag("is_pinned"),
            is_locked=fields.optional_flag("is_locked"),
            needs=_needs(fields),
            unmet=_unmet(fields),
            is_needed_only=fields.optional_flag("is_needed_only"),
        )


@dataclass(frozen=True, slots=True)
class ModelsPage:
    """Some models, in the order of their sources.

    Attributes:
        models: As many as one message holds.
        next: What to ask for the next page with; empty when this is the last.
    """

    models: tuple[Model, ...]
    next: str = ""

    TYPE: ClassVar[str] = "models_page"

    def to_fields(self, text_limit: int = TEXT_LIMITS[0]) -> dict[str, Any]:
        """The message's keys, but for its type, origins clipped to ``text_limit``."""
        return {"models": [model.to_fields(text_limit) for model in self.models], "next": self.next}

    @classmethod
    def parse(cls, fields: Fields) -> ModelsPage:
        """The message with these keys."""
        models = tuple(map(Model.parse, fields.children("models", MAX_MODELS)))
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
