"""``watch`` and ``follow``: export directories that training writes into."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from craftcache.amounts import size_text
from craftcache.watch_rule import WatchRule, default_watch_name

from .context import Site, json_option, pass_place
from .output import NOT_KNOWN, print_columns, print_json, print_json_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from craftcache import Generation
    from craftcache.daemon.administration import WatchReport

__all__ = ["watch", "follow"]

END_SECONDS = 3.0
"""How long the command that ``follow`` runs may take to end where ``follow`` itself is ended."""


@click.group()
def watch() -> None:
    """Watch export directories.

    The last verified state of each is served as watch:NAME.
    """


@watch.command()
@click.argument("directory")
@click.option("--name", help="Name of the watch; the run's directory by default.")
@click.option(
    "--settle",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long both files must be quiet.",
)
@click.option("--marker", metavar="FILE", help="Wait for this file, made after the pair.")
@click.option(
    "--gate", metavar="CMD", help="Publish only if CMD, given the candidate's directory, exits 0."
)
@click.option(
    "--keep", type=int, default=2, show_default=True, help="Generations beside the newest."
)
@click.option("--poll", is_flag=True, help="Look in intervals, whatever the file system.")
@json_option
@pass_place
def add(
    place: Site,
    directory: str,
    name: str | None,
    settle: float,
    marker: str | None,
    gate: str | None,
    keep: int,
    *,
    poll: bool,
    as_json: bool,
) -> None:
    """Watch DIRECTORY, or each that a quoted pattern like 'runs/*/export' stands for."""
    directory = os.path.abspath(directory)
    rule = WatchRule(
        name=name or default_watch_name(directory),
        directory=directory,
        settle=settle,
        marker=marker,
        gate=gate,
        keep=keep,
        poll=poll,
    )
    place.admin().put_watch(rule)
    if as_json:
        print_json(rule.to_fields())
    else:
        named = f"watch:{rule.name}-..." if rule.is_pattern else f"watch:{rule.name}"
        click.echo(f"{directory}: watched as {named}")


@watch.command()
@json_option
@pass_place
def ls(place: Site, *, as_json: bool) -> None:
    """List what is watched, how it is and which generation is served."""
    listed = place.admin().watches()
    if as_json:
        print_json(listed.to_fields())
        return
    rows = [
        (
            each.rule.name,
            each.state,
            _served(each),
            ",".join(map(str, each.generations)) or NOT_KNOWN,
            each.rule.directory,
            _why(each),
        )
        for each in listed.watches
    ]
    rows += [(rule.name, "pattern", "", "", rule.directory, "") for rule in listed.patterns]
    print_columns(("NAME", "STATE", "SERVED", "GENERATIONS", "DIRECTORY", "WHY"), rows)


@watch.command()
@click.argument("name")
@json_option
@pass_place
def rm(place: Site, name: str, *, as_json: bool) -> None:
    """Watch NAME no more, and remove its generations."""
    freed = place.admin().remove_watch(name)
    if as_json:
        print_json({"name": name, "freed_bytes": freed})
    else:
        click.echo(f"watch:{name}: removed, {size_text(freed)} freed")


@watch.command()
@click.argument("name")
@click.argument("number", type=click.IntRange(1), required=False)
@json_option
@pass_place
def rollback(place: Site, name: str, number: int | None, *, as_json: bool) -> None:
    """Serve generation NUMBER of NAME, or the one before, until `watch resume`."""
    _print_watch(place.admin().roll_back_watch(name, number), as_json=as_json)


@watch.command()
@click.argument("name")
@json_option
@pass_place
def resume(place: Site, name: str, *, as_json: bool) -> None:
    """Serve the newest generation of NAME again, and each new one."""
    _print_watch(place.admin().resume_watch(name), as_json=as_json)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--after", type=click.IntRange(1), help="The number of a generation known already.")
@click.option("--once", is_flag=True, help="End after one generation.")
@json_option
@pass_place
def follow(
    place: Site,
    name: str,
    command: tuple[str, ...],
    after: int | None,
    *,
    once: bool,
    as_json: bool,
) -> None:
    """Print each generation of a watch as it is served.

    The present one comes first. With a COMMAND after --, run it for each: CRAFTCACHE_SOURCE in its
    environment is what to load. What is replaced while it runs is skipped.
    """
    for generation in place.client().follow(name, after=after):
        if as_json:
            print_json_line(generation)
        else:
            digests = " ".join(f"{part}={sha256}" for part, sha256 in generation.sha256.items())
            click.echo(f"watch:{generation.name}@{generation.number} {digests}")
        sys.stdout.flush()
        status = _run(command, generation) if command else 0
        if status:
            click.echo(f"{command[0]}: exit status {status}", err=True)
        if once:
            raise SystemExit(status)


def _run(command: tuple[str, ...], generation: Generation) -> int:
    environment = {
        "CRAFTCACHE_SOURCE": f"watch:{generation.name}@{generation.number}",
        "CRAFTCACHE_WATCH": generation.name,
        "CRAFTCACHE_GENERATION": str(generation.number),
    }
    try:
        with _running(command, os.environ | environment) as child:
            return child.wait()
    except OSError as error:
        raise click.UsageError(f"{command[0]}: {error.strerror}") from error


@contextlib.contextmanager
def _running(
    command: tuple[str, ...], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is ended with this one, also by a signal that comes while it is started."""
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(signal.getsignal(number))
    }
    child = None
    try:
        try:
            child = subprocess.Popen(command, env=environment)  # noqa: S603  # what this command is for
        finally:
            for caught, handler in handlers.items():
                signal.signal(caught, handler)
        for number in came:
            signal.raise_signal(number)
        yield child
    except BaseException:
        if child is not None:
            _end(child)
        raise


def _end(child: subprocess.Popen[bytes]) -> None:
    """End what was started, as this command ends itself: it would go on with nobody to tell."""
    child.terminate()
    try:
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _print_watch(watch: WatchReport, *, as_json: bool) -> None:
    if as_json:
        print_json(watch.to_fields())
    else:
        click.echo(f"watch:{watch.rule.name}: serves {_served(watch)}")


def _why(watch: WatchReport) -> str:
    """What is said of a watch's state, and of why its directory is looked at in intervals."""
    notes = (watch.detail, f"polled: {watch.polled}" if watch.polled else "")
    return "; ".join(filter(None, notes)) or NOT_KNOWN


def _served(watch: WatchReport) -> str:
    if watch.served is None:
        return NOT_KNOWN
    return f"{watch.served.generation}{' (held)' if watch.is_held else ''}"
