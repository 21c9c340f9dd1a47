"""The closure of a model: what AudioCraft looks for beyond the files that hold the model itself.

    needs       what is needed, and what of it cannot be warmed
    table       what AudioCraft names only in its code
    discover    from the indexes of verified files to their closure

Nothing here asks the network or loads a checkpoint.
"""

from .discover import discover
from .needs import Closure, Need, NeedState, Unmet

__all__ = ["Closure", "Need", "NeedState", "Unmet", "discover"]
