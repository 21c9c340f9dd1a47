"""A worker without a daemon: the cache, then the origin.

    resolver.Resolver   finds verified files in a cache
    own_fetch           fetches and publishes what is missing
    stream              one plain download
    abandonable         a blocking call that its caller can leave behind

The rules are the daemon's: nothing unverified is loaded, and nothing partial is published.
"""
