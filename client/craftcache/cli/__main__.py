"""``python -m craftcache.cli``: the command line of this very interpreter."""

from . import main

main()
