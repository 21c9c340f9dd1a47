"""A filter in the kernel that refuses some system calls to this process and all that it starts."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NETWORK_CALLS", "refuse"]

NETWORK_CALLS: Final = {
    "x86_64": (41, 42, 425),
    "aarch64": (198, 203, 425),
}
"""The numbers of socket, connect and io_uring_setup, which can do both, by machine."""

_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""What the kernel calls the system calls of a machine: AUDIT_ARCH_*."""

_X32_CALLS: Final = 0x40000000
"""From here on, calls on x86_64 are those of another interface, with numbers of its own."""

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_KILL_PROCESS: Final = 0x80000000
_ALLOW: Final = 0x7FFF0000
_FAIL_WITH: Final = 0x00050000

_NUMBER_OFFSET: Final = 0
_ARCHITECTURE_OFFSET: Final = 4
"""In what the filter is shown of a call, struct seccomp_data."""

_LOAD_WORD: Final = 0x20
_JUMP_IF_EQUAL: Final = 0x15
_JUMP_IF_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06

_INSTRUCTION: Final = struct.Struct("=HBBI")
"""Its code, how many to skip if a comparison holds and if it does not, and its operand."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse(numbers: Sequence[int]) -> None:
    """Make these system calls fail with EPERM from now on; those of a foreign interface kill.

    Needs ``no_new_privs``, or privileges.

    Raises:
        OSError: The kernel has no filters, or the machine is none that is known here.
    """
    architecture = _ARCHITECTURES.get(os.uname().machine)
    if architecture is None:
        raise OSError(errno.ENOSYS, f"no filter is known for {os.uname().machine}")
    code = _filter(architecture, numbers)
    program = _Program(len(code) // _INSTRUCTION.size, code)
    mode = ctypes.c_ulong(_SECCOMP_MODE_FILTER)
    if _libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no filter of system calls")


def _filter(architecture: int, numbers: Sequence[int]) -> bytes:
    pack = _INSTRUCTION.pack
    return b"".join(
        (
            pack(_LOAD_WORD, 0, 0, _ARCHITECTURE_OFFSET),
            pack(_JUMP_IF_EQUAL, 1, 0, architecture),
            pack(_RETURN, 0, 0, _KILL_PROCESS),
            pack(_LOAD_WORD, 0, 0, _NUMBER_OFFSET),
            pack(_JUMP_IF_AT_LEAST, 0, 1, _X32_CALLS),
            pack(_RETURN, 0, 0, _KILL_PROCESS),
            *(
                instruction
                for number in numbers
                for instruction in (
                    pack(_JUMP_IF_EQUAL, 0, 1, number),
                    pack(_RETURN, 0, 0, _FAIL_WITH | errno.EPERM),
                )
            ),
            pack(_RETURN, 0, 0, _ALLOW),
        )
    )
