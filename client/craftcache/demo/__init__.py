"""What the demonstration's workers do, and the sample that they load; both need torch.

    worker    an inference worker, a program of its own
    sample    an export like AudioCraft's, with random weights

The demonstration itself is the daemon's, ``craftcached.demo``, which imports no torch.
"""
