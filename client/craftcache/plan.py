"""The ways to a source's files: the places where a load looks for them, in order.

A plan depends on the source and the settings only. ``explain`` goes through all of plan_load and
reports the outcome of each step. A load takes the same steps in two parts:

- ``Loader.open`` tries the steps of a local source in order. Of any other source it takes the
  ``daemon`` step only, and does not read its obstacle: DaemonClient knows that there is no socket.
- ``FallbackHandler``, which is called where the daemon is unavailable, takes the steps of
  plan_without_daemon in order, and passes over those with an obstacle. If no step has the files,
  the error is that of the origin, or else names the first obstacle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from .sources import LocalDirectory, LocalFile

if TYPE_CHECKING:
    from .sources import Source

__all__ = ["NO_SOCKETS", "Fallback", "PlanStep", "Way", "plan_load", "plan_without_daemon"]

Fallback: TypeAlias = Literal["origin", "cache", "none"]
"""What to do without the daemon: ``cache`` uses verified copies only, ``origin`` also fetches
missing files, ``none`` raises."""

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
    """One step of a plan: a place where the files of a source may be.

    Attributes:
        way: ``file`` and ``directory`` are this process's own. ``watched directory`` is one that
            the daemon watches: then its last verified generation is served. ``daemon`` serves the
            files or fetches them first; ``cache`` is a verified copy that needs no daemon;
            ``origin`` is a fetch by this process; ``hub cache`` is a copy that huggingface_hub
            made, hashed before its use.
        obstacle: Reason why this step is skipped; None if it is taken. That of ``daemon`` is only
            shown by ``explain``.
    """

    way: Way
    obstacle: str | None = None


def plan_load(
    source: Source, *, fallback: Fallback, has_sockets: bool, is_offline: bool
) -> tuple[PlanStep, ...]:
    """The steps of a load of ``source``.

    Args:
        source: The source that is to be loaded.
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
    """The steps after the daemon; see plan_load.

    The origin comes before the copy that huggingface_hub made, because huggingface_hub verified
    that by its size alone, and it may be of an older revision.
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
