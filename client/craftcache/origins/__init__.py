"""Origins as worker and daemon share them: what the Hub says of files, and what may be fetched.

    hub       asks the Hub for a file's commit, validator, size and address
    policy    which addresses bytes may be fetched from, private ones and plain HTTP among them
    etags     which validators tell that a file has the very same bytes

The bytes come from elsewhere: in the daemon by ``craftcached.fetch``, for what
``craftcached.warm.origins`` describes; in a worker alone by ``fallback.own_fetch``.
"""
