"""``demo``: the daemon's own demonstration, run as a program of its own.

The client must not import the daemon, which lives in the same distribution but needs the extra.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import click

from craftcache.errors import CraftcacheError

from .context import json_option

__all__ = ["demo"]

NEEDED = ("craftcached", "aiohttp", "torch")
"""The daemon's package, what stands for the requirements of its extra, and what workers need."""


@click.command()
@click.argument("source", required=False)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="Worker processes."
)
@json_option
def demo(source: str | None, workers: int, *, as_json: bool) -> None:
    """Show and check the whole promise on this machine.

    A daemon in a temporary directory warms SOURCE, several workers load it at once, the daemon is
    killed, and a worker loads it again. Without SOURCE a sample export is served by a small hub
    on this machine, so that no network is needed. Exits with 1 if any step does not do what it
    promises.
    """
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        raise CraftcacheError(
            "the demo needs the daemon and torch, which are not both installed",
            hint="pip install 'craftcache[daemon,torch]'",
        )
    arguments = [sys.executable, "-m", "craftcached.demo", f"--workers={workers}"]
    if as_json:
        arguments.append("--json")
    if source is not None:
        arguments += ["--", source]
    os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter; it takes over signals
