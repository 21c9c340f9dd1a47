"""An answer and the descriptors that came with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Reply"]

AnswerT = TypeVar("AnswerT")


class Reply(Generic[AnswerT]):
    """An answer, and the descriptors that came with it, which it owns until they are taken.

    Attributes:
        answer: What the daemon said.
    """

    __slots__ = ("_descriptors", "answer")

    def __init__(self, answer: AnswerT, descriptors: tuple[int, ...] = ()) -> None:
        self.answer = answer
        self._descriptors = descriptors

    @property
    def descriptor_count(self) -> int:
        """How many descriptors it owns."""
        return len(self._descriptors)

    def take(self) -> tuple[int, ...]:
        """The descriptors, which are the caller's to close from now on."""
        taken, self._descriptors = self._descriptors, ()
        return taken

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        for descriptor in self.take():
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
