"""``craftcached``: runs the daemon in the foreground, logging to stderr."""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # before anything that Python 3.10 has not
    sys.exit(
        "craftcached needs Python 3.11 or newer, and this is"
        f" {sys.version.split()[0]}. Run it in an environment of its own; it serves workers on"
        " Python 3.10 as well"
    )

import asyncio
import functools
import os
from pathlib import Path

import click

from craftcache.config import config_path
from craftcache.version import VERSION

from .options import settings_options
from .process import run
from .program import running_program
from .settings_reading import load_settings, settings_faults
from .systemd import InheritedSockets, Notifier

__all__ = ["main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
@click.option(
    "--config", "config_file", type=Path, help="Configuration file, instead of its usual places."
)
@click.option(
    "--check-config",
    is_flag=True,
    help="Only say whether the settings are right, or all that is wrong with them; starts nothing.",
)
@settings_options()
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def main(
    config_file: Path | None, log_level: str, *, check_config: bool, **arguments: object
) -> None:
    """Keep AudioCraft exports downloaded, verified and hot, and serve them to workers.

    Settings come from the command line, then CRAFTCACHE_* in the environment, then
    /etc/craftcache/config.toml (or $XDG_CONFIG_HOME/craftcache/config.toml), then defaults. In the
    file each has its variable's name, in small letters and without CRAFTCACHE_; lists are separated
    by commas in the environment.

    The token for gated and private repositories comes from systemd's credential hf-token, from
    HF_TOKEN or from the file that HF_TOKEN_PATH names.
    """
    given = {name: value for name, value in arguments.items() if value not in (None, ())}
    if check_config:
        _check_config(given, config_file)
        return
    with running_program(log_level, failing="cannot start"):
        was_stopped = asyncio.run(
            run(
                functools.partial(load_settings, given, config_file=config_file),
                InheritedSockets.take(os.environ),
                Notifier.of(os.environ),
            )
        )
    if not was_stopped:
        sys.exit(1)


def _check_config(arguments: dict[str, object], config_file: Path | None) -> None:
    """Say what is wrong with the settings, one line each; exit status 1 if anything is."""
    faults = settings_faults(arguments, config_file=config_file)
    for fault in faults:
        click.echo(f"{fault.message}. {fault.hint}", err=True)
    if faults:
        sys.exit(1)
    click.echo(f"the settings are right; the file is {config_file or config_path() or 'none'}")


if __name__ == "__main__":
    main()
