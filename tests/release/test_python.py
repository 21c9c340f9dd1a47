"""The wheel and the source distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

OWN_TESTS = (
    "tests/test_main_job.py",
    "tests/client/test_imports.py",
    "tests/client/cli/test_command.py",
    "tests/systemd/test_units.py",
    "tests/release/test_documents.py",
)
"""Some that need the client, the daemon, the data, the units and the packaging; ``make test-dist``
runs all."""


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution's own directory."""
    (archive,) = dist.glob("craftcache-*.tar.gz")
    directory = tmp_path_factory.mktemp("sdist")
    with tarfile.open(archive) as opened:
        # The argument of that name came with Python 3.11.4.
        opened.extraction_filter = getattr(tarfile, "data_filter", None)
        opened.extractall(directory)
    (root,) = directory.iterdir()
    return root


def tracked() -> set[str]:
    """What the repository holds."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def files_below(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None,
    reason="this tree is no repository, or git is not here to ask",
)
def test_the_source_distribution_holds_what_the_repository_does(unpacked: Path) -> None:
    assert files_below(unpacked) - {"PKG-INFO"} == tracked()


def test_the_source_distribution_passes_its_own_tests_from_its_own_files(unpacked: Path) -> None:
    where = f"{unpacked}/client:{unpacked}/daemon"
    code = "import craftcache, craftcached; print(craftcache.__file__, craftcached.__file__)"
    environment = os.environ | {"PYTHONPATH": where}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(f"{unpacked}/") for path in found.stdout.split())
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *OWN_TESTS],
        cwd=unpacked,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stdout
    assert " passed" in tested.stdout


def test_the_wheel_has_both_packages_their_types_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    version = wheel.name.split("-")[1]
    info = f"craftcache-{version}.dist-info"
    assert tops == {"craftcache", "craftcached", info, f"craftcache-{version}.data"}
    assert {"craftcache/py.typed", "craftcached/py.typed", f"{info}/licenses/LICENSE"} <= set(names)


def test_the_wheel_is_the_same_when_it_is_made_from_the_source_distribution(
    unpacked: Path, wheel: Path, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=unpacked,
        capture_output=True,
        check=True,
    )
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()
