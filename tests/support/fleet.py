"""Nodes behind a mirror: real daemons, each with directories and a configuration of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.daemons import DaemonProcess
from tests.support.nginx_mirror import SLICE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.hub import TestHub

__all__ = ["node_at"]


def node_at(
    base: Path,
    hub: TestHub,
    mirror_url: str | None,
    *,
    patience: float = 30.0,
    token: str | None = None,
    slice_bytes: int = SLICE_BYTES,
) -> DaemonProcess:
    """A daemon with that mirror of the Hub, or without one; it is not started."""
    config = base / "config" / "craftcache" / "config.toml"
    config.parent.mkdir(parents=True)
    config.touch()
    if mirror_url is not None:
        config.write_text(
            f"""\
[[mirrors]]
of = "hub"
url = "{mirror_url}"
insecure = true
slice_bytes = {slice_bytes}
patience = {patience}
"""
        )
    environment = {"HF_ENDPOINT": hub.endpoint, "XDG_CONFIG_HOME": str(base / "config")}
    if token is not None:
        environment["HF_TOKEN"] = token
    return DaemonProcess(base, **environment)
