"""Nodes behind a mirror: real daemons, each with directories and a configuration of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.daemons import DaemonProcess
from tests.support.nginx_mirror import SLICE_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.hub import TestHub

__all__ = ["node_at"]


def node_at(
    base: Path,
    hub: TestHub,
    *mirror_urls: str,
    patience: float = 30.0,
    grace: float = 4.0,
    settings: str = "",
    token: str | None = None,
    slice_bytes: int = SLICE_BYTES,
    within: Sequence[str] = (),
) -> DaemonProcess:
    """A daemon with these mirrors of the Hub, or with none; it is not started.

    Its configuration begins with ``settings``, as TOML has them. ``within`` is a command that runs
    another.
    """
    config = base / "config" / "craftcache" / "config.toml"
    config.parent.mkdir(parents=True)
    tables = "".join(
        f"""
[[mirrors]]
of = "hub"
url = "{url}"
insecure = true
slice_bytes = {slice_bytes}
patience = {patience}
grace = {grace}
"""
        for url in mirror_urls
    )
    config.write_text(settings + tables)
    environment = {"HF_ENDPOINT": hub.endpoint, "XDG_CONFIG_HOME": str(base / "config")}
    if token is not None:
        environment["HF_TOKEN"] = token
    if hub.host != "127.0.0.1":
        environment["CRAFTCACHE_INSECURE_HOSTS"] = hub.host
    return DaemonProcess(base, within=within, **environment)
