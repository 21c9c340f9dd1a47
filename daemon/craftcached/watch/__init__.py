"""Watched export directories: training writes into them, and workers are served what is right.

    watches     all of them: which there are, and how each is
    serving     what each of them serves: publication, rollback, and who waits for it
    pattern     finds the directories that a pattern stands for
    watcher     one directory: looks at it, takes it when it is quiet
    observing   hints from the kernel that something may have changed
    mounts      whether the kernel knows of all changes
    looking     what is in a directory at one moment, by names and stamps
    settling    what the looks mean: the states, as a pure function of looks and times
    making      copy and hash, inspect, gate
    copying     the copy, and whether the files stayed as they were meanwhile
    gate        the administrator's own check
    generations the verified states, numbered, published and pruned

A *generation* is a pair of files that were quiet for the settle time, did not change while they
were copied, and can be loaded safely. If a writer dies between the two files and stays dead for
longer than the settle time, the pair as it stands is the next generation; a marker file or a gate
is for writers of whom that can be expected.
"""

from .watcher import Report
from .watches import Watches

__all__ = ["Report", "Watches"]
