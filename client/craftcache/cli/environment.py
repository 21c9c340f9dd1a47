"""``env`` and ``run``: what makes unmodified programs use the cache."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import click

from craftcache.cache.directory import CacheDir

from .context import Site, json_option, pass_place
from .output import print_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["env", "run"]

NOT_EXECUTABLE = 126
NOT_FOUND = 127
"""The exit codes of env(1) and of shells for a command that cannot be run."""

EARLIER_NAMES = (
    "TRANSFORMERS_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE",
    "PYTORCH_PRETRAINED_BERT_CACHE",
)
"""Variables by which releases of transformers before 5 look elsewhere, whatever the others say."""

online_option = click.option(
    "--online", is_flag=True, help="Leave out HF_HUB_OFFLINE=1, so that programs may fetch."
)


@click.command()
@online_option
@json_option
@pass_place
def env(place: Site, *, online: bool, as_json: bool) -> None:
    """Print what makes unmodified programs use the cache.

    Use it as: eval "$(craftcache env)"
    """
    variables = cache_environment(place.chosen_cache_dir(), online=online)
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    for name in EARLIER_NAMES:
        if name in os.environ:
            click.echo(f"unset {name}")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@online_option
@click.option(
    "--patch-audiocraft",
    is_flag=True,
    help="Let AudioCraft's loaders go through craftcache (see craftcache.audiocraft.install).",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_place
def run(place: Site, *, online: bool, patch_audiocraft: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND with what `craftcache env` prints.

    Write it after two dashes: craftcache run -- python generate.py
    """
    variables = cache_environment(place.chosen_cache_dir(), online=online)
    if patch_audiocraft:
        variables |= patch_environment(place)
    kept = {name: value for name, value in os.environ.items() if name not in EARLIER_NAMES}
    try:
        os.execvpe(command[0], command, kept | variables)  # noqa: S606 - the user's own command
    except OSError as error:
        click.echo(f"craftcache: {command[0]}: {error.strerror}", err=True)
        not_found = isinstance(error, FileNotFoundError)
        raise SystemExit(NOT_FOUND if not_found else NOT_EXECUTABLE) from error


def cache_environment(cache_dir: Path, *, online: bool) -> dict[str, str]:
    """The variables by which AudioCraft, huggingface_hub and torch.hub find the cache."""
    variables = {
        "AUDIOCRAFT_CACHE_DIR": str(cache_dir),
        "HF_HUB_CACHE": str(cache_dir),
        "TORCH_HOME": str(CacheDir(cache_dir).torch.home),
    }
    return variables if online else variables | {"HF_HUB_OFFLINE": "1"}


def patch_environment(place: Site) -> dict[str, str]:
    """The variables by which each Python that is started patches AudioCraft for this place."""
    from craftcache.audiocraft import STARTUP_DIR

    paths = [STARTUP_DIR, os.environ.get("PYTHONPATH")]
    variables = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "CRAFTCACHE_CACHE_DIR": str(place.chosen_cache_dir()),
    }
    if place.socket_dir is not None:
        variables["CRAFTCACHE_SOCKET_DIR"] = os.path.abspath(place.socket_dir)
    return variables
