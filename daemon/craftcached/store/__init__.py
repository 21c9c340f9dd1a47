"""The content store: the daemon's access to the cache directory.

    store.Store          publishes, finds and removes; the only writer
    opener.BlobOpener    opens published blobs for workers
    indexes              sealed copies of the indexes in memory
    removal              removes models, and the blobs that no other model needs
    scrub                hashes published blobs again

Nothing else in the daemon writes there, but for the fetch engine in its own part of staging.
"""
