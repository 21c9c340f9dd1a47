"""The closure of a model: what AudioCraft looks for beyond the files that hold the model itself.

    dependency  what is needed, and what of it cannot be warmed
    table       what AudioCraft names only in its code
    discover    from the indexes of verified files to their closure

Nothing here asks the network or loads a checkpoint.
"""

from .dependency import Dependencies, Dependency, DependencyState, UnmetDependency
from .discover import discover

__all__ = ["Dependencies", "Dependency", "DependencyState", "UnmetDependency", "discover"]
