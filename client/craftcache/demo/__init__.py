"""What the demonstration's workers do, and the sample that they load; both need torch.

    worker    an inference worker, a program of its own
    sample    an export like AudioCraft's, with random weights

The demonstration itself is the daemon's, ``craftcached.demo``, which imports no torch.
"""

from craftcache.torch_import import import_torch

import_torch()  # before the modules here do, which would let it warn that numpy is not there
