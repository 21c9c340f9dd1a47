"""Whether the Hub can be reached from here."""

from __future__ import annotations

import os

from craftcache.config import config_path, read_config
from craftcache.origins.hub import hub_endpoint
from craftcache.sources import shown_url

from .finding import Finding

__all__ = ["check"]

ANSWER_SECONDS = 5.0


def check(daemons: str | None) -> Finding:
    """Ask the Hub for anything at all; it may well refuse.

    Args:
        daemons: The address that the daemon asks, which is the one that matters; None where it does
            not say, and then it is what a daemon would read here.
    """
    import httpx

    configured = read_config(config_path()).get("hub_endpoint")
    here = os.environ.get("CRAFTCACHE_HUB_ENDPOINT") or configured or hub_endpoint()
    endpoint = str(daemons or here)
    shown = shown_url(endpoint)
    whose = f"{shown}, which the daemon asks," if daemons else shown
    try:
        httpx.head(endpoint, timeout=ANSWER_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(
            "hub",
            "warning",
            f"{whose} cannot be reached from this process ({type(error).__name__})",
            "Check network, proxy and hub_endpoint; what is cached is served all the same",
        )
    return Finding("hub", "ok", f"{whose} answers")
