"""The group of all commands and its global options."""

from __future__ import annotations

from pathlib import Path

import click

from craftcache.version import VERSION

from .bundle import bundle, lock
from .cached import explain, ls, rm, show
from .context import Commands, Site
from .demo import demo
from .doctor import doctor
from .environment import env, run
from .events import events
from .export import export, publish
from .keep import evict, pin, unpin
from .load import load
from .plan import plan
from .processes import ps
from .prune import prune
from .quarantine import quarantine
from .queue import queue
from .status import status
from .top import top
from .verify import verify
from .warm import warm
from .watch import follow, watch

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the daemon's sockets are, instead of CRAFTCACHE_SOCKET_DIR or /run/craftcache.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The cache, instead of CRAFTCACHE_CACHE_DIR or AUDIOCRAFT_CACHE_DIR.",
)
@click.version_option(VERSION, message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context, socket_dir: Path | None, cache_dir: Path | None) -> None:
    """One verified, hot copy of every AudioCraft checkpoint per GPU node.

    A SOURCE is a Hub id (org/name or org/name@revision), an https:// URL, a watched directory
    (watch:NAME), or a local file or directory.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 75 failed and a retry may help.
    """
    context.obj = Site(socket_dir, cache_dir)


for command in (
    warm,
    plan,
    queue,
    load,
    ls,
    show,
    explain,
    status,
    top,
    ps,
    events,
    pin,
    unpin,
    rm,
    evict,
    prune,
    lock,
    bundle,
    verify,
    quarantine,
    watch,
    follow,
    export,
    publish,
    env,
    run,
    doctor,
    demo,
):
    main.add_command(command)
