"""AudioCraft's own loaders, going through craftcache.

``install()`` changes four names in AudioCraft's modules, and ``uninstall()`` puts them back:
checkpoints come from a Client, are mapped rather than read, and a model that the loaders build is
not filled with random numbers first. The model is the one that AudioCraft would have returned, bit
for bit. Its parts:

    installation    which names, in which versions of AudioCraft, and what stands in for them
    deferring       random initialisation, put off until it is known who needs it
    startup/        what `craftcache run --patch-audiocraft` puts on PYTHONPATH

What else calls AudioCraft's builders in the same process (a training run, say) is left alone.
"""

from .installation import install, is_installed, uninstall

__all__ = ["install", "is_installed", "uninstall"]
