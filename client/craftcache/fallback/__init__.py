"""The fallback: how a worker gets its files where the daemon cannot serve them.

    handler.FallbackHandler   begin here: answers a request without the daemon, step by step
    resolver.Resolver         finds verified files in a cache, and has missing ones fetched
    own_fetch                 fetches from the origin and publishes, in this process
    stream                    one plain download
    abandonable               a blocking call that its caller can leave behind

Whether there is a fallback is decided before: ``loading.loader.Loader.handle`` comes here when the
daemon's client raises DaemonUnavailable. Which steps there are, and in which order, is said by
:mod:`craftcache.plan`. The rules are the daemon's: nothing unverified is loaded, and nothing
partial is published.
"""
