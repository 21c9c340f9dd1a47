"""What a worker does without a daemon: the cache, then the origin.

    resolver.Resolver   finds what stands verified in a cache
    own_fetch           fetches and publishes the rest
    stream              one plain download

The rules are the daemon's: nothing unverified is loaded, and nothing partial is published.
"""
