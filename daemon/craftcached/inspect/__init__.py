"""Inspection: is a checkpoint safe to load, and what does it hold.

    inspector.Inspector     in the daemon: starts and restarts the next, hands it files
    forkserver              a process of its own that has imported torch; forks one child a file
    confine                 what the child gives up before it looks at the file
    seccomp                 how it gives up the network where a sandbox forbids namespaces
    examine                 what the child does: container, pickle, index
    archive                 the zip container, read strictly

A file can only hurt the child that looks at it. The daemon itself never imports torch and never
reads a checkpoint's content.
"""

from .inspector import Inspector

__all__ = ["Inspector"]
