"""What every command shares: where the cache and the daemon are, ``--json``, and how it fails."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from craftcache.config import choose_cache_dir, choose_socket_dir
from craftcache.errors import CraftcacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from craftcache import AsyncClient, Client
    from craftcache.daemon.admin import AdminClient

__all__ = [
    "FAILED",
    "RETRY_MAY_HELP",
    "Site",
    "pass_place",
    "json_option",
    "Commands",
    "show_error",
    "exit_code",
    "until_interrupted",
]

FAILED = 1
RETRY_MAY_HELP = 75
"""EX_TEMPFAIL of sysexits.h."""

_AS_JSON = "craftcache.as_json"

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass(frozen=True, slots=True)
class Site:
    """The cache and the daemon that the global options name.

    Attributes:
        socket_dir: As given, or None to look it up.
        cache_dir: As given, or None to look it up.
    """

    socket_dir: Path | None
    cache_dir: Path | None

    def client(self) -> Client:
        """What workers use."""
        from craftcache import Client

        return Client(socket_dir=self.socket_dir, cache_dir=self.cache_dir)

    def async_client(self) -> AsyncClient:
        """What workers use in an event loop."""
        from craftcache import AsyncClient

        return AsyncClient(socket_dir=self.socket_dir, cache_dir=self.cache_dir)

    def admin(self) -> AdminClient:
        """What administrators use."""
        from craftcache.daemon.admin import AdminClient

        return AdminClient(choose_socket_dir(self.socket_dir))

    def chosen_cache_dir(self) -> Path:
        """The cache directory in force."""
        return choose_cache_dir(self.cache_dir)


pass_place = click.make_pass_decorator(Site)


def json_option(command: F) -> F:
    """``--json``: the data as JSON on stdout, errors as problem documents on stderr."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
        context.meta[_AS_JSON] = value
        return value

    help_text = "Print JSON; errors as problem documents on stderr, one a line."
    return click.option("--json", "as_json", is_flag=True, callback=remember, help=help_text)(
        command
    )


class Commands(click.Group):
    """A group whose commands fail by CraftcacheError."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error of ours becomes its words and its exit code."""
        try:
            return super().invoke(ctx)
        except CraftcacheError as error:
            show_error(error, as_json=ctx.meta.get(_AS_JSON, False))
            ctx.exit(exit_code(error))


def show_error(error: CraftcacheError, *, as_json: bool) -> None:
    """Say on stderr what failed and, on the next line, what to do."""
    if as_json:
        click.echo(json.dumps(error.to_problem()), err=True)
        return
    source = f"{error.source}: " if error.source else ""
    click.echo(f"craftcache: {source}{error.message}", err=True)
    if error.hint:
        click.echo(error.hint, err=True)


@contextlib.contextmanager
def until_interrupted() -> Iterator[None]:
    """A context for what goes on until it is interrupted, which then is no failure."""
    with contextlib.suppress(KeyboardInterrupt):
        yield


def exit_code(*errors: CraftcacheError) -> int:
    """The exit code for these failures: 75 only where a retry may mend all of them."""
    return RETRY_MAY_HELP if all(error.retryable for error in errors) else FAILED
