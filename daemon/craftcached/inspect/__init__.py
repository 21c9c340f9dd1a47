"""Inspection: is a checkpoint safe to load, and what does it hold.

    inspector.Inspector     in the daemon: has a process look at each file, and says what it found
    processes               in the daemon: has those processes forked, and hears how they end
    forkserver              the process that they are forked from, which reads no file
    child                   the process for a file: confines itself, then reads it
    confine                 what it gives up before it looks at the file
    seccomp                 how it gives up the network where a sandbox forbids namespaces

A file can only hurt the process that looks at it. The reading itself is the client's, in
``craftcache.checkpoint.reader``; no process of the daemon imports torch, and the daemon itself
never reads a checkpoint's content.

The fork server imports this package too, and nothing that it does not need: so ``Inspector`` is
imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .inspector import Inspector

__all__ = ["Inspector"]


def __getattr__(name: str) -> object:
    if name != "Inspector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .inspector import Inspector

    return Inspector
