"""What all requests have in common."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from craftcache.sources import RemoteSource

__all__ = ["Request"]

AnswerT = TypeVar("AnswerT", covariant=True)


class Request(Generic[AnswerT]):
    """A request, by the type of its answer."""

    __slots__ = ()

    TYPE: ClassVar[str]
    ANSWER: ClassVar[type[Any]]

    def to_fields(self) -> dict[str, Any]:
        """The message's keys without its type: by default its attributes."""
        values: Any = self
        return asdict(values)

    def is_answered_by(self, answer: object) -> bool:
        """Whether ``answer`` is of this request's type of answer, and fits its attributes."""
        return isinstance(answer, self.ANSWER)

    @property
    def about(self) -> RemoteSource | None:
        """The source that the request is about; None if it is about none."""
        return None
