"""``python -m craftcache.cli``: the command line of this very interpreter."""

from .app import main

main()
