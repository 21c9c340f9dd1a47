"""The interpreter of a checkpoint's pickle, which makes descriptions and calls nothing.

It knows the opcodes that torch's weights-only loader knows, and no others; what a pickle names is
looked up in a table, and calling it is describing what would be returned. All that it does is
bounded: by the length of the pickle, by a number of opcodes, and for what costs more than its
opcode (a long list that is copied again and again, keys that are slow to hash) by budgets.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NoReturn

from craftcache.errors import NotACheckpoint, UnsafeCheckpoint

from .calls import UNSAFE_HINT, find_global, set_state
from .descriptions import Global, Ordered, Other, TensorView, kind_of
from .keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_PICKLE_BYTES", "Unpickler"]

MAX_PICKLE_BYTES: Final = 32 * 1024 * 1024
"""Longest pickle that is read; one of 100,000 tensors takes 25 MB."""

_MAX_OPCODES: Final = 8_000_000
"""Most steps of one pickle; one of 100,000 tensors takes 4 million."""

_MAX_COPIED: Final = 64 * 1024 * 1024
"""Items and characters of all arguments of all calls together."""

_STOPPED: Final = -1

_LONG_BINPUT: Final = ord("r")

_DOUBLE: Final = Struct(">d")


class Unpickler:
    """Interprets one pickle.

    Args:
        data: Holds the pickle, and perhaps more behind it.
        load_storage: Describes the storage that a persistent id stands for.
        position: Offset in ``data`` at which the pickle starts.

    Attributes:
        position: Offset at which it ended, once it is loaded.
        reason: What an index cannot express of it, beside the oddities of the descriptions.
    """

    def __init__(
        self, data: bytes, load_storage: Callable[[tuple[Any, ...]], object], position: int = 0
    ) -> None:
        self.position = position
        self.reason: str | None = None
        self._data = data
        self._load_storage = load_storage
        self._memo: list[Any] = []
        self._sparse_memo: dict[int, Any] = {}
        """Memo entries out of sequence, which no real pickler writes."""
        self._stack: list[Any] = []
        self._stacks: list[list[Any]] = []
        """The stacks below each mark, innermost last."""
        self._result: object = None
        self._copied = 0
        self._keys = Keys()

    def load(self) -> object:
        """What the pickle holds.

        Raises:
            UnsafeCheckpoint: It asks for a call that torch's weights-only loader refuses.
            NotACheckpoint: It is damaged, absurd, or what that loader cannot read.
        """
        steps: list[Callable[[int], int]] = [self._refuse] * 256
        for opcode, name in _STEPS.items():
            steps[opcode] = getattr(self, name)
        data, memo, position = self._data, self._memo, self.position
        try:
            for _ in range(_MAX_OPCODES):
                opcode = data[position]
                if opcode == _LONG_BINPUT:  # every fourth is; a call of a method is half its cost
                    number = int.from_bytes(data[position + 1 : position + 5], "little")
                    if number == len(memo):
                        memo.append(self._stack[-1])
                    else:
                        self._put(number)
                    position += 5
                    continue
                position = steps[opcode](position + 1)
                if position < 0:
                    self._memo, self._sparse_memo = [], {}
                    return self._result
        except (
            IndexError,
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise NotACheckpoint(
                f"its pickle is damaged or truncated ({type(error).__name__} near byte {position})"
            ) from error
        raise NotACheckpoint(f"its pickle takes more than {_MAX_OPCODES} steps")

    def _refuse(self, position: int) -> NoReturn:
        import pickletools  # slow to import, and seldom wanted

        opcode = self._data[position - 1]
        names = {known.code: known.name for known in pickletools.opcodes}
        name = names.get(chr(opcode), f"0x{opcode:02x}")
        raise NotACheckpoint(
            f"its pickle has the opcode {name}, which torch's weights-only loader does not read",
            hint="Save it anew by torch.save, with the protocol that it has by default",
        )

    # What is risky: names, calls, states.

    def _global(self, position: int) -> int:
        data = self._data
        middle = data.index(b"\n", position)
        end = data.index(b"\n", middle + 1)
        self._stack.append(
            find_global(data[position:middle].decode(), data[middle + 1 : end].decode())
        )
        return end + 1

    def _reduce(self, position: int) -> int:
        stack = self._stack
        args = stack.pop()
        function = stack[-1]
        if type(function) is not Global:
            raise UnsafeCheckpoint(f"loading it would call a {kind_of(function)}", hint=UNSAFE_HINT)
        if function.call is None or type(args) is not tuple:
            raise NotACheckpoint(f"it calls {function.name}, which no checkpoint does")
        if args and function.copies:
            self._charge(args)
            if function.name == "collections.OrderedDict":
                self._keys.check_pairs(args[0])
        stack[-1] = function.call(*args)
        return position

    def _newobj(self, position: int) -> int:
        args = self._stack.pop()
        cls = self._stack.pop()
        if type(cls) is not Global:
            raise UnsafeCheckpoint(
                f"loading it would instantiate a {kind_of(cls)}", hint=UNSAFE_HINT
            )
        if cls.new is None or type(args) is not tuple:
            raise NotACheckpoint(f"it instantiates {cls.name}, which no checkpoint does")
        self._charge(args)
        self._stack.append(cls.new(*args))
        return position

    def _build(self, position: int) -> int:
        state = self._stack.pop()
        target = self._stack[-1]
        self._charge((state,))
        if not set_state(target, state):
            raise UnsafeCheckpoint(
                f"loading it would set the state of a {kind_of(target)}", hint=UNSAFE_HINT
            )
        if type(target) is TensorView:  # which others may hold already, as it was
            self.reason = self.reason or "it holds a tensor in the form of torch before 0.4"
        return position

    def _persid(self, position: int) -> int:
        key = self._stack.pop()
        if type(key) is not tuple or not key or key[0] != "storage":
            raise NotACheckpoint("it refers to something else than a storage outside its pickle")
        self._stack.append(self._load_storage(key))
        return position

    def _charge(self, args: tuple[Any, ...]) -> None:
        self._copied += sum([len(arg) for arg in args if type(arg) in (str, list, tuple, dict)])
        if self._copied > _MAX_COPIED:
            raise NotACheckpoint("loading it takes more computing than any checkpoint needs")

    # Containers.

    def _mark(self, position: int) -> int:
        self._stacks.append(self._stack)
        self._stack = []
        return position

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._stacks.pop()
        return items

    def _append(self, position: int) -> int:
        item = self._stack.pop()
        self._list().append(item)
        return position

    def _appends(self, position: int) -> int:
        items = self._pop_mark()
        self._list().extend(items)
        return position

    def _list(self) -> list[Any]:
        target = self._stack[-1]
        if type(target) is not list:
            raise NotACheckpoint(f"it appends to a {kind_of(target)}")
        return target

    def _setitem(self, position: int) -> int:
        value = self._stack.pop()
        key = self._stack.pop()
        self._set_items([key, value])
        return position

    def _setitems(self, position: int) -> int:
        self._set_items(self._pop_mark())
        return position

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is Ordered or (type(target) is Other and target.items is not None):
            target = target.items
        if type(target) is not dict:
            raise NotACheckpoint(f"it sets items of a {kind_of(target)}")
        keys = items[::2]
        self._keys.check(keys)
        if len(items) % 2:
            raise NotACheckpoint("it sets an item without its value")
        target.update(zip(keys, items[1::2]))  # noqa: B905  of one length

    def _empty_list(self, position: int) -> int:
        self._stack.append([])
        return position

    def _empty_dict(self, position: int) -> int:
        self._stack.append({})
        return position

    def _empty_set(self, position: int) -> int:
        self._stack.append(Other("set"))
        return position

    def _empty_tuple(self, position: int) -> int:
        self._stack.append(())
        return position

    def _tuple(self, position: int) -> int:
        items = self._pop_mark()
        self._stack.append(tuple(items))
        return position

    def _tuple1(self, position: int) -> int:
        stack = self._stack
        stack[-1] = (stack[-1],)
        return position

    def _tuple2(self, position: int) -> int:
        stack = self._stack
        last = stack.pop()
        stack[-1] = (stack[-1], last)
        return position

    def _tuple3(self, position: int) -> int:
        stack = self._stack
        last = stack.pop()
        middle = stack.pop()
        stack[-1] = (stack[-1], middle, last)
        return position

    # Plain values.

    def _none(self, position: int) -> int:
        self._stack.append(None)
        return position

    def _true(self, position: int) -> int:
        self._stack.append(True)
        return position

    def _false(self, position: int) -> int:
        self._stack.append(False)
        return position

    def _int1(self, position: int) -> int:
        self._stack.append(self._data[position])
        return position + 1

    def _int2(self, position: int) -> int:
        self._stack.append(int.from_bytes(self._data[position : position + 2], "little"))
        return position + 2

    def _int4(self, position: int) -> int:
        number = int.from_bytes(self._data[position : position + 4], "little", signed=True)
        self._stack.append(number)
        return position + 4

    def _long1(self, position: int) -> int:
        end = position + 1 + self._data[position]
        self._stack.append(int.from_bytes(self._data[position + 1 : end], "little", signed=True))
        return end

    def _float(self, position: int) -> int:
        self._stack.append(_DOUBLE.unpack_from(self._data, position)[0])
        return position + 8

    def _unicode(self, position: int) -> int:
        start = position + 4
        end = start + int.from_bytes(self._data[position:start], "little")
        self._stack.append(str(self._data[start:end], "utf-8", "surrogatepass"))
        return end

    def _short_string(self, position: int) -> int:
        end = position + 1 + self._data[position]
        self._stack.append(self._data[position + 1 : end].decode())
        return end

    # The memo, and both ends.

    def _put1(self, position: int) -> int:
        self._put(self._data[position])
        return position + 1

    def _put(self, number: int) -> None:
        memo = self._memo
        if number == len(memo):
            memo.append(self._stack[-1])
        elif number < len(memo):
            memo[number] = self._stack[-1]
        else:
            self._sparse_memo[number] = self._stack[-1]

    def _get1(self, position: int) -> int:
        number = self._data[position]
        memo = self._memo
        self._stack.append(memo[number] if number < len(memo) else self._sparse_memo[number])
        return position + 1

    def _get4(self, position: int) -> int:
        number = int.from_bytes(self._data[position : position + 4], "little")
        memo = self._memo
        self._stack.append(memo[number] if number < len(memo) else self._sparse_memo[number])
        return position + 4

    def _proto(self, position: int) -> int:
        return position + 1

    def _stop(self, position: int) -> int:
        self._result = self._stack.pop()
        self.position = position
        return _STOPPED


_STEPS: Final = {
    ord(opcode): name
    for opcode, name in {
        "(": "_mark",
        ")": "_empty_tuple",
        ".": "_stop",
        "G": "_float",
        "J": "_int4",
        "K": "_int1",
        "M": "_int2",
        "N": "_none",
        "Q": "_persid",
        "R": "_reduce",
        "U": "_short_string",
        "X": "_unicode",
        "]": "_empty_list",
        "a": "_append",
        "b": "_build",
        "c": "_global",
        "e": "_appends",
        "h": "_get1",
        "j": "_get4",
        "q": "_put1",
        "s": "_setitem",
        "t": "_tuple",
        "u": "_setitems",
        "}": "_empty_dict",
        "\x80": "_proto",
        "\x81": "_newobj",
        "\x85": "_tuple1",
        "\x86": "_tuple2",
        "\x87": "_tuple3",
        "\x88": "_true",
        "\x89": "_false",
        "\x8a": "_long1",
        "\x8f": "_empty_set",
    }.items()
}
"""The opcodes that are known, by the method that acts on each."""
