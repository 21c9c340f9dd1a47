"""Eviction: which models make room for others, and which must stay.

    policy             which models go, as a pure function
    evictor.Evictor    surveys the cache, asks the policy, removes
    last_use           when each blob was used last
    pins               models that stay whatever happens
    maintenance        periodic work, and eviction after each change

A model in use is never evicted: unlinking it would free nothing.
"""
