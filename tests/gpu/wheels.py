"""Wheels that lie beside the tests, for a machine that cannot install anything."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "wheels"


def unpack_wheels(target: Path, wheels: Path = DIRECTORY) -> dict[str, str]:
    """Unpack all wheels, and return the environment in which Python finds them and this project."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    root = Path(__file__).parents[2]
    paths = [
        str(root / "client"),
        str(root / "daemon"),
        str(root),
        str(target),
        os.environ.get("PYTHONPATH", ""),
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
