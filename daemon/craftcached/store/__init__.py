"""The content store: the cache directory in the daemon's hands.

    store.Store          publishes and finds; the only writer
    opener.BlobOpener    opens published blobs for workers
    removal              takes models out, and the blobs that no other model needs
    scrub                hashes published blobs anew

Nothing else in the daemon writes there, but for the fetch engine in its own staging.
"""
