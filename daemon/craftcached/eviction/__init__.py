"""Eviction: which models are removed to free space, and which must stay.

    policy             which models are removed, as a pure function
    evictor.Evictor    surveys the cache, asks the policy, removes
    last_use           the time of each model's last use
    pins               models that are never evicted or removed
    maintenance        periodic work, and eviction after each change

A model in use is never evicted: unlinking it would free nothing.
"""
