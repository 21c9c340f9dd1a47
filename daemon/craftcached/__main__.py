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
import faulthandler
import functools
import logging
import os
import signal
from pathlib import Path

import click

from craftcache.errors import CraftcacheError
from craftcache.version import VERSION

from .options import settings_options
from .process import run
from .settings import Settings
from .systemd import InheritedSockets, JournalFormatter, Notifier, is_journal

__all__ = ["main"]

log = logging.getLogger("craftcached")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
@click.option(
    "--config", "config_file", type=Path, help="Configuration file, instead of its usual places."
)
@settings_options
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def main(config_file: Path | None, log_level: str, **arguments: object) -> None:
    """Keep AudioCraft exports downloaded, verified and hot, and serve them to workers.

    Settings come from the command line, then CRAFTCACHE_* in the environment, then
    /etc/craftcache/config.toml (or $XDG_CONFIG_HOME/craftcache/config.toml), then defaults. In the
    file each has its variable's name, in small letters and without CRAFTCACHE_; lists are separated
    by commas in the environment.

    The token for gated and private repositories comes from systemd's credential hf-token, from
    HF_TOKEN or from the file that HF_TOKEN_PATH names.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent may ignore it: no child would be heard
    faulthandler.enable()  # where it hung, when the service manager's watchdog aborts it
    _log_to_stderr(log_level)
    given = {name: value for name, value in arguments.items() if value not in (None, ())}
    try:
        asyncio.run(
            run(
                functools.partial(Settings.load, given, config_file=config_file),
                InheritedSockets.take(os.environ),
                Notifier.of(os.environ),
            )
        )
    except (CraftcacheError, OSError) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400  # the sentence says it all
        sys.exit(1)


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    if is_journal(sys.stderr.fileno(), os.environ):
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    # What libraries say of themselves shows whole URLs, headers and statements.
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for ours in ("craftcached", "craftcache"):
        logging.getLogger(ours).setLevel(level.upper())


if __name__ == "__main__":
    main()
