"""Keys of dicts, before they are hashed: a pickle can choose ones that take very long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from craftcache.errors import NotACheckpoint

from .descriptions import Global, Other, StorageBytes, TensorView, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Keys"]

_MAX_UNUSUAL: Final = 10_000
"""Keys that are neither texts nor short integers; others can be made to collide."""

_MAX_PARTS: Final = 1000
"""Values in one key that is a tuple; it is hashed anew each time."""

_SHORT: Final = 2**60
"""Below it an integer's hash is itself, and a dict of them as fast as any."""

_HASHABLE: Final = (type(None), bool, int, float, str, Global, StorageBytes, TensorView, Other)


class Keys:
    """The keys of all dicts of one pickle."""

    def __init__(self) -> None:
        self._unusual = 0

    def check(self, keys: Iterable[object]) -> None:
        """See to it that no hash takes a long time, and that they are unlike enough.

        Raises:
            NotACheckpoint: There are too many odd ones, or one that is no key.
        """
        for key in keys:
            if type(key) is not str:
                self._check(key)

    def check_pairs(self, pairs: object) -> None:
        """The same for the keys of pairs; what else is wrong with these shows later."""
        if type(pairs) is list or type(pairs) is tuple:
            for pair in pairs:
                if (type(pair) is list or type(pair) is tuple) and pair:
                    self.check(pair[:1])

    def _check(self, key: object) -> None:
        if key is None or type(key) is bool or (type(key) is int and -_SHORT < key < _SHORT):
            return
        self._unusual += 1
        if self._unusual > _MAX_UNUSUAL:
            raise NotACheckpoint(f"more than {_MAX_UNUSUAL} keys that are no texts or numbers")
        left = _MAX_PARTS
        waiting = [key]
        while waiting:
            part = waiting.pop()
            if type(part) is tuple:
                left -= len(part)
                if left < 0:
                    raise NotACheckpoint(f"a key of more than {_MAX_PARTS} values")
                waiting += part
            elif type(part) not in _HASHABLE:
                raise NotACheckpoint(f"a {kind_of(part)} as a key")
