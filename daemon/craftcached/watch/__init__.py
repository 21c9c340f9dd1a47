"""Watched export directories: training writes into them, and workers are served verified pairs.

    watches       all watches: which there are, and their states
    publisher     what each watch serves: publication, rollback, and who waits for it
    pattern       finds the directories that a pattern stands for
    watcher       one directory: looks at it, takes the pair when it is quiet
    inotify       hints from the kernel that something may have changed
    mounts        whether the kernel knows of all changes
    snapshot      the names and stamps in a directory at one moment
    state         the states, as a pure function of snapshots and times
    candidate     copies and hashes, inspects, asks the gate
    copying       the copy, and whether the files stayed as they were meanwhile
    gate          the administrator's own check
    generations   the verified states, numbered, published and pruned

A *generation* is a pair of files that were quiet for the settle time, did not change while they
were copied, and can be loaded safely. If a writer dies between the two files and stays dead for
longer than the settle time, the pair as it stands is the next generation; a marker file or a gate
is for writers of whom that can be expected.
"""

from .watcher import Report
from .watches import Watches

__all__ = ["Report", "Watches"]
