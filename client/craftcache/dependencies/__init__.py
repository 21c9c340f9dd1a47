"""Dependencies: what AudioCraft loads for a model beyond the files that hold the model itself.

    discover    finds them in the indexes of a model's verified files
    dependency  a source that is needed, and what is needed that no cache can hold
    table       what AudioCraft names only in its code

Nothing here asks the network or loads a checkpoint. ``cache.publish`` calls discover and records
what it finds in the model's manifest; the daemon's ``warm.dependencies`` and ``Warmer`` warm it.
"""

from .dependency import Dependencies, Dependency, DependencyState, UnmetDependency
from .discover import discover

__all__ = ["Dependencies", "Dependency", "DependencyState", "UnmetDependency", "discover"]
