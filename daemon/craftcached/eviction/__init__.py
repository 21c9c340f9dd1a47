"""Eviction: which models are removed to free space, and which must stay.

    policy             which models are removed, as a pure function
    quota              whether more bytes may come, and what goes for them, as a pure function
    survey             the published models as the policy sees them
    meter              what craftcache and others put into the cache directory
    others             snapshots of other tools, as the policy sees them
    evictor.Evictor    asks the policy and removes; makes room before bytes come
    last_use           the time of each model's last use
    pins               models that are never evicted or removed
    holds              models that are not evicted for a while, by users' word
    parts              evictor, surveyor, pins, holds and last uses as one value
    prune              removes the models that filters choose, where nothing needs them
    maintenance        periodic work, and eviction after each change

A model in use is never evicted: unlinking it would free nothing.
"""
