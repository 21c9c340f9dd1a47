"""AudioCraft's own loaders, going through craftcache.

``install()`` changes a few names in AudioCraft's modules, and ``uninstall()`` puts them back:
checkpoints come from a Client, are mapped rather than read, and a model that the loaders build is
not filled with random numbers first. The model is the one that AudioCraft would have returned, bit
for bit. Its parts:

    installation    which names, in which versions of AudioCraft, and what stands in for them
    building        how the loaders build a model and fill it from the checkpoint
    placing         the device that they build it on
    deferring       random initialisation, put off until it is known who needs it
    startup/        what installs it in a program that knows nothing of it

What else calls AudioCraft's builders in the same process (a training run, say) is left alone.
"""

import os
from typing import Final

from .installation import install, is_installed, uninstall

__all__ = ["STARTUP_DIR", "install", "is_installed", "uninstall"]

STARTUP_DIR: Final = os.path.join(os.path.dirname(__file__), "startup")
"""A Python that is started with it on PYTHONPATH installs the patch by itself."""
