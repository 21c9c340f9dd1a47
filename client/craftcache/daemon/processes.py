"""Which processes use which models, as the daemon says it over HTTP."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from craftcache.wire.fields import MAX_REVISION, MAX_SOURCE

if TYPE_CHECKING:
    from craftcache.wire.fields import Fields

__all__ = ["ModelProcess", "ModelUse", "command_line"]

MAX_USES = 4096
MAX_COMMAND = 4096


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that a process was handed.

    Attributes:
        source: The model, as shown to people.
        revision: The revision that was handed over.
        loads: How often.
        loaded_at: When last, in seconds since the epoch.
        is_open: Whether any process has a file of it open or mapped; a model that was copied to a
            device may be in use though none has. None where the kernel does not say.
    """

    source: str
    revision: str
    loads: int
    loaded_at: float
    is_open: bool | None = None

    @classmethod
    def parse(cls, fields: Fields) -> ModelUse:
        """The use with these keys."""
        return cls(
            fields.text("source", MAX_SOURCE),
            fields.text("revision", MAX_REVISION, empty=True),
            fields.integer("loads"),
            fields.seconds("loaded_at"),
            None if fields.is_null("is_open") else fields.flag("is_open"),
        )


@dataclass(frozen=True, slots=True)
class ModelProcess:
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
    user: str
    command: str
    models: tuple[ModelUse, ...] = ()
    waits_for: tuple[str, ...] = ()

    def to_fields(self) -> dict[str, Any]:
        """The process as a JSON object."""
        return asdict(self)

    @classmethod
    def parse(cls, fields: Fields) -> ModelProcess:
        """The process with these keys."""
        return cls(
            fields.integer("pid"),
            fields.integer("uid"),
            fields.text("user", MAX_COMMAND, empty=True),
            fields.text("command", MAX_COMMAND, empty=True),
            tuple(map(ModelUse.parse, fields.children("models", MAX_USES))),
            fields.texts("waits_for", MAX_USES, MAX_SOURCE),
        )


def command_line(pid: int) -> str:
    """The command line of a process in one line, as far as it may be read; else empty."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(MAX_COMMAND).rstrip(b"\0").split(b"\0")
    except OSError:
        return ""
    text = " ".join(word.decode("utf-8", "replace") for word in words)
    return "".join(char if char.isprintable() else "?" for char in text)
