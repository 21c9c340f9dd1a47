"""``doctor``: is this installation in order, and if not, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .context import Site, json_option, pass_place
from .output import print_json

if TYPE_CHECKING:
    from craftcache.doctor import Finding

__all__ = ["doctor"]

_MARKS = {"ok": "ok", "warning": "WARN", "problem": "FAIL"}


@click.command()
@json_option
@pass_place
def doctor(place: Site, *, as_json: bool) -> None:
    """Examine this installation and say what to mend.

    Sockets, cache, limits, versions and the Hub are looked at. Exits with 1 where something does
    not work; warnings alone are no failure.
    """
    from craftcache.doctor import examine

    findings: list[Finding] = []
    for finding in examine(place.socket_dir, place.cache_dir):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        print_json({"findings": findings})
    if any(finding.state == "problem" for finding in findings):
        raise SystemExit(1)


def _show(finding: Finding) -> None:
    click.echo(f"{_MARKS[finding.state]:<5} {finding.check}: {finding.message}")
    if finding.remedy:
        click.echo(f"      {finding.remedy}")
