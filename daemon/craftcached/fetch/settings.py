"""The settings of the fetch engine, with their units."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from craftcache.network.token import OWN_PLACE

__all__ = ["EngineSettings", "MIB", "USER_AGENT"]

MIB = 1024 * 1024

USER_AGENT = f"craftcached/{version('craftcache')}"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Limits and patience of one engine; the defaults suit a GPU node on a fast line.

    Attributes:
        max_connections: Requests in flight at once, over all downloads.
        max_connections_per_host: Requests in flight at once to one host.
        piece_bytes: The most that one request asks for where the server speaks ranges; the
            first ones ask for less.
        connect_seconds: Patience for a connection, its name look-up and its TLS handshake.
        stall_seconds: How long a request may bring less than ``minimum_rate`` before it is
            dropped and its range asked for again.
        minimum_rate: Bytes a second below which a request counts as stalled.
        deadline_seconds: Limit for one download as a whole, or None.
        attempts: Tries of one range in a row that bring no byte before the download fails.
        backoff_seconds: Upper bound of the first wait between tries; it doubles with each.
        max_backoff_seconds: Upper bound of any wait; an origin that asks for a longer one is
            reported to the caller instead of waited for.
        bandwidth: Bytes a second for all downloads together, or None for no cap.
        uplink: Bytes a second for all downloads together from origins that have a mirror, or None
            for no cap.
        memory_bytes: What all downloads together keep in memory of bytes that came before their
            turn to be hashed; what does not fit is read back from the file.
        user_agent: Sent with every request.
        token_place: Where the Hub's token belongs, for whoever lacks one.
        journal_retention_seconds: Age after which partial files that no fetch resumed are removed.
    """

    max_connections: int = 16
    max_connections_per_host: int = 8
    piece_bytes: int = 8 * MIB
    connect_seconds: float = 10.0
    stall_seconds: float = 15.0
    minimum_rate: int = 16 * 1024
    deadline_seconds: float | None = 12 * 3600.0
    attempts: int = 6
    backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    bandwidth: int | None = None
    uplink: int | None = None
    memory_bytes: int = 16 * MIB
    user_agent: str = USER_AGENT
    token_place: str = OWN_PLACE
    journal_retention_seconds: float = 7 * 24 * 3600.0
