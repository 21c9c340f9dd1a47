"""Makes everything that a release consists of: ``make dist``.

    python packaging/dist.py [--into DIRECTORY] [KIND ...]

Kinds: ``python`` (wheel and source distribution), ``documents`` (man pages and completions) and
``debian`` (the package, made from the other two); all of them where none is named. The Debian
package takes its libraries from the package index, at the versions of ``constraints.txt``, for
Debian's own Python: it is made on the release of Debian that it is for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from email.utils import formatdate
from pathlib import Path

ROOT = Path(__file__).parents[1]

KINDS = ("python", "documents", "debian")

DEBIAN_TOOLS = {"dpkg-buildpackage": "dpkg-dev", "dh": "debhelper"}
"""What the Debian package is made with, and where each comes from."""

DEBIAN_SOURCES = (
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "docs",
    "systemd",
)

MAINTAINER = "The craftcache authors <craftcache@localhost.localdomain>"
"""Without an address, for there is none; Debian's tools want the form of one."""


def main() -> None:
    """Make what the command line asks for."""
    parser = argparse.ArgumentParser(description="Make what a release consists of.")
    parser.add_argument("--into", type=Path, default=ROOT / "dist", metavar="DIRECTORY")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    arguments = parser.parse_args()
    kinds = arguments.kinds or KINDS
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    arguments.into.mkdir(parents=True, exist_ok=True)
    if "python" in kinds:
        make_python(arguments.into)
    if "documents" in kinds:
        make_documents(arguments.into)
    if "debian" in kinds:
        make_debian(arguments.into)


def make_python(directory: Path) -> None:
    """Write the wheel and the source distribution; older ones in ``directory`` go."""
    for old in (*directory.glob("craftcache-*.whl"), *directory.glob("craftcache-*.tar.gz")):
        old.unlink()
    backend = (sys.executable, "-m", "hatchling", "build", "--directory", directory.absolute())
    _run(*backend, "--target", "sdist", "--target", "wheel", directory=ROOT)


def make_documents(directory: Path) -> None:
    """Write man pages and completions."""
    for name in ("man", "completions"):
        shutil.rmtree(directory / name, ignore_errors=True)
    _run(sys.executable, ROOT / "packaging" / "documents.py", directory.absolute(), directory=ROOT)


def make_debian(directory: Path) -> None:
    """Write the Debian package, from the wheel and the documents in ``directory``."""
    for tool, package in DEBIAN_TOOLS.items():
        if shutil.which(tool) is None:
            sys.exit(f"No Debian package was made: {tool} is not here; apt install {package}")
    with tempfile.TemporaryDirectory(prefix="craftcache-debian-") as temporary:
        tree = Path(temporary) / "craftcache"
        (wheel,) = directory.glob("craftcache-*.whl")
        _gather(tree, directory, wheel)
        # Wheels are no sources to Debian: there is no source package, and nothing is signed.
        _run("dpkg-buildpackage", "--build=binary", "--no-sign", directory=tree)
        (package,) = tree.parent.glob("craftcache_*.deb")
        for old in directory.glob("craftcache_*.deb"):
            old.unlink()
        shutil.copy(package, directory)


def _gather(tree: Path, directory: Path, wheel: Path) -> None:
    """Lay out what ``debian/rules`` works with."""
    shutil.copytree(ROOT / "packaging" / "debian", tree / "debian")
    for name in DEBIAN_SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    for name in ("man", "completions"):
        shutil.copytree(directory / name, tree / name)
    shutil.copy(wheel, tree)
    version = wheel.name.split("-")[1]
    (tree / "debian" / "changelog").write_text(_changelog(version))


def _changelog(version: str) -> str:
    """Debian's own kind of changelog, which gives the package its version."""
    date = formatdate(float(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    what = "See changelog.gz in this directory."
    head = f"craftcache ({version}-1) stable; urgency=medium"
    return f"{head}\n\n  * {what}\n\n -- {MAINTAINER}  {date}\n"


def _run(*command: str | Path, directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, check=False)
    if done.returncode:
        sys.exit(f"{Path(command[0]).name} failed with exit status {done.returncode}")


if __name__ == "__main__":
    main()
