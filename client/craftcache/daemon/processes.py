"""Which processes use which models, as the daemon says it over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from craftcache.wire.fields import MAX_REVISION, MAX_SOURCE
from craftcache.wire.record import AtMost, JsonRecord, Source, text, texts

__all__ = ["ModelProcess", "ModelUse", "command_line"]

MAX_USES = 4096
MAX_COMMAND = 4096


@dataclass(frozen=True, slots=True)
class ModelUse(JsonRecord):
    """A model that a process was handed.

    Attributes:
        source: The model, as shown to people.
        revision: The revision that was handed over.
        loads: How often.
        loaded_at: When last, in seconds since the epoch.
        is_open: Whether any process has a file of it open or mapped; a model that was copied to a
            device may be in use though none has. None where the kernel does not say.
    """

    source: Source
    revision: Annotated[str, text(MAX_REVISION, empty=True)]
    loads: int
    loaded_at: float
    is_open: bool | None = None


@dataclass(frozen=True, slots=True)
class ModelProcess(JsonRecord):
    """A running process that was handed models, or waits for some.

    Attributes:
        pid: Process id, in the daemon's PID namespace.
        uid: Its user.
        user: The user's name; empty where there is none.
        command: Its command line; empty where it cannot be read.
        models: The models that it was handed, the newest last.
        waits_for: Sources that it waits for now.
    """

    pid: int
    uid: int
    user: Annotated[str, text(MAX_COMMAND, empty=True)]
    command: Annotated[str, text(MAX_COMMAND, empty=True)]
    models: Annotated[tuple[ModelUse, ...], AtMost(MAX_USES)]
    waits_for: Annotated[tuple[str, ...], texts(MAX_USES, MAX_SOURCE)]


def command_line(pid: int) -> str:
    """The command line of a process in one line, as far as it may be read; else empty."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(MAX_COMMAND).rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    text = " ".join(word.decode("utf-8", "replace") for word in words)
    return "".join(char if char.isprintable() else "?" for char in text)
