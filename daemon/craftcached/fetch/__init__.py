"""Fetching: from an origin's promise to verified, durable bytes in staging.

From the outside in: an `engine` carries out fetch requests, each by a `job`, which chooses how;
`ranges` makes requests by `transfer` for what `pieces` says is missing, as many at once as
`concurrency` finds worthwhile and the `limits` allow; a `writer` writes what comes into a
`partial_file`, hashes it in order by `hashing` and notes it in a `journal`. What goes wrong with a
request is one of `faults`, and `retry` says whether and when to try again. What they all share is
their `context`. A file whose bytes turn out wrong is fetched anew by `integrity_retry`. Which
`mirrors` are asked before the origin is each download's route; `provenance` knows who sent what,
and `repairs` has it replaced.

States of a file: arriving (``<key>.part``, mode 0600, with its journal) -> sealed (verified,
fsynced, 0444) -> the caller's. Nothing else is handed out, and only an arriving file is resumed.
"""

from .engine import Engine
from .integrity_retry import IntegrityRetry
from .mirrors import Mirror, Mirrors, MirrorStatistics
from .settings import EngineSettings
from .types import Fetched, Fetcher, Priority, RemoteFile
from .xet import xet_command

__all__ = [
    "Engine",
    "EngineSettings",
    "Fetched",
    "Fetcher",
    "Mirror",
    "MirrorStatistics",
    "Mirrors",
    "Priority",
    "RemoteFile",
    "IntegrityRetry",
    "xet_command",
]
