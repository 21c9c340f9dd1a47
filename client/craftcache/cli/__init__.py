"""The command line: ``craftcache``.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 75 a retry
may help. What is heavy (torch, rich, httpx) is imported by the command that needs it.
"""

from .app import main

__all__ = ["main"]
