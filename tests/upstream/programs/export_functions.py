"""Exports what trainings wrote by AudioCraft's own functions.

Run as ``python export_functions.py DIRECTORY...`` by an interpreter that has AudioCraft. In each is
a language model's ``lm.th`` and a codec's ``codec.th``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from audiocraft.utils import export


def main(directories: list[str]) -> None:
    """Write beside them what they are exported as, and the codec in all the ways there are."""
    for directory in map(Path, directories):
        codec = directory / "codec.bin"
        export.export_lm(directory / "lm.th", directory / "lm.bin")
        export.export_encodec(directory / "codec.th", codec)
        export.export_pretrained_compression_model(str(codec), directory / "copied.bin")
        export.export_pretrained_compression_model("dac_44khz", directory / "named.bin")


if __name__ == "__main__":
    main(sys.argv[1:])
