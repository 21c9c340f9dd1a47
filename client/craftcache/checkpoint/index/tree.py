"""From an index's tree to the objects that it describes."""

from __future__ import annotations

from collections import OrderedDict
from math import inf, nan
from typing import TYPE_CHECKING, Any, Final

from .form import MAX_DEPTH, InvalidIndex

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from .form import Node

__all__ = ["assemble"]

_FLOATS: Final[dict[str, float]] = {"nan": nan, "inf": inf, "-inf": -inf}


def assemble(tree: Node, tensors: Sequence[object]) -> object:
    """The object that a tree describes, with ``tensors`` in the places of their numbers.

    Raises:
        InvalidIndex: The tree is malformed or names a tensor beyond ``tensors``.
    """
    return _assemble(tree, tensors, 0)


def _assemble(node: object, tensors: Sequence[object], depth: int) -> object:
    if isinstance(node, dict):
        raise InvalidIndex("a JSON object in the tree")
    if not isinstance(node, list):
        return node
    if depth > MAX_DEPTH:
        raise InvalidIndex(f"nested deeper than {MAX_DEPTH}")
    match node:
        case ["T", int(number)]:
            return _consecutive(tensors, number, 1)[0]
        case ["d", list(keys), values]:
            return dict(_items(keys, values, tensors, depth))
        case ["o", list(keys), values, attributes]:
            ordered = OrderedDict(_items(keys, values, tensors, depth))
            state = _assemble(attributes, tensors, depth + 1)
            if type(state) is not dict or not all(type(name) is str for name in state):
                raise InvalidIndex("attributes of an OrderedDict are no dict of names")
            vars(ordered).update(state)
            return ordered
        case ["l", list(values)]:
            return [_assemble(value, tensors, depth + 1) for value in values]
        case ["t", list(values)]:
            return tuple(_assemble(value, tensors, depth + 1) for value in values)
        case ["f", str(name)] if name in _FLOATS:
            return _FLOATS[name]
    raise InvalidIndex("a node of no known kind")


def _items(
    keys: list[Node], values: Node, tensors: Sequence[object], depth: int
) -> Iterable[tuple[Hashable, object]]:
    """The items of a dict; each key must be hashable and appear once."""
    built: Sequence[object]
    if isinstance(values, list):
        built = [_assemble(value, tensors, depth + 1) for value in values]
    else:
        built = _consecutive(tensors, values, len(keys))
    names: list[Any] = keys
    if set(map(type, keys)) - {str}:
        names = [_assemble(key, tensors, depth + 1) for key in keys]
    try:
        distinct = len(set(names))
    except TypeError as error:
        raise InvalidIndex("a key that cannot be one") from error
    if not distinct == len(names) == len(built):
        raise InvalidIndex("keys and values of a dict do not pair up")
    return zip(names, built, strict=True)


def _consecutive(tensors: Sequence[object], first: object, count: int) -> Sequence[object]:
    if type(first) is not int or not 0 <= first <= len(tensors) - count:
        raise InvalidIndex(f"tensors {first!r} and on of {len(tensors)}")
    return tensors[first : first + count]
