"""What several rooms' tests share: a hub, daemons, sockets, checkpoints, and programs to run."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Of the clone, or of the unpacked source distribution."""

SUPPORT = ROOT / "tests" / "support"
DATA = ROOT / "tests" / "data"
