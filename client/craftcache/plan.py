"""The ways to the files of a source, in the order in which a load tries them.

A plan is made without looking at anything but the source and the settings, so it is the same for a
load, which takes the ways in order until one leads there, and for ``explain``, which says of each
where it would lead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from .sources import LocalDirectory, LocalFile

if TYPE_CHECKING:
    from .sources import Source

__all__ = ["NO_SOCKETS", "Fallback", "PlanStep", "Way", "plan_load", "plan_without_daemon"]

Fallback: TypeAlias = Literal["origin", "cache", "none"]
"""What to do without the daemon: fetch from the ``origin`` what no ``cache`` has, use only what a
cache has, or ``none``: raise."""

NO_SOCKETS = "there is no daemon on this machine"

Way: TypeAlias = Literal[
    "file",
    "watched directory",
    "directory",
    "daemon",
    "cache",
    "origin",
    "hub cache",
]


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One way to the files of a source.

    Attributes:
        way: ``file`` and ``directory`` are this process's own. ``watched directory`` is one that
            the daemon watches: then its last verified generation is served. ``daemon`` has it or
            fetches it; ``cache`` is a verified copy that needs no daemon; ``origin`` is a fetch of
            this process's own; ``hub cache`` is what huggingface_hub left, hashed before its use.
        obstacle: Why this way is not to be taken here; None where it is open.
    """

    way: Way
    obstacle: str | None = None


def plan_load(
    source: Source, *, fallback: Fallback, has_sockets: bool, is_offline: bool
) -> tuple[PlanStep, ...]:
    """How to load ``source``.

    Args:
        source: What is to be loaded.
        fallback: What to do without the daemon.
        has_sockets: Whether this machine has a socket directory, where a daemon may listen.
        is_offline: Whether huggingface_hub, and so this process, is told not to fetch.
    """
    match source:
        case LocalFile():
            return (PlanStep("file"),)
        case LocalDirectory():
            return (PlanStep("watched directory"), PlanStep("directory"))
    by_daemon = PlanStep("daemon", None if has_sockets else NO_SOCKETS)
    return (by_daemon, *plan_without_daemon(fallback, is_offline=is_offline))


def plan_without_daemon(fallback: Fallback, *, is_offline: bool) -> tuple[PlanStep, ...]:
    """How to go on where the daemon cannot be had; see plan_load.

    The origin is asked before what huggingface_hub left is used, because that was verified by its
    size alone and may be of an older revision.
    """
    if fallback == "none":
        forbidden: str | None = "fallback='none' forbids to do without the daemon"
    else:
        forbidden = None
    no_fetch = forbidden
    if no_fetch is None and is_offline:
        no_fetch = "HF_HUB_OFFLINE is set"
    elif no_fetch is None and fallback == "cache":
        no_fetch = "fallback='cache' forbids it"
    return (
        PlanStep("cache", forbidden),
        PlanStep("origin", no_fetch),
        PlanStep("hub cache", forbidden),
    )
