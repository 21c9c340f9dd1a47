"""The content store: the daemon's access to the cache directory.

    store.Store          publishes, finds and removes
    cache_lock           one daemon a cache: the lock, and what to do where it was removed
    heartbeat            the same on file systems that do not carry the lock from node to node
    local_files          bytes that this node has already, so that they are not fetched
    opener.BlobOpener    opens published blobs for workers
    indexes              sealed copies of the indexes in memory
    index_files          the indexes on the disk, and their digests in manifests
    manifest_repair      manifests that cannot be read any more, written again or set aside
    removal              removes models, and the blobs that no other model needs
    links                names by which unmodified programs reach the blobs
    quarantine           what turned out wrong, kept for a while
    verity               has the kernel check published blobs
    owner                follows another daemon's cache, for a daemon with read_only
    changes              every change of the directory goes through it
    writers_lock         who may write now: many that add, or one that changes

Nothing else in the daemon writes there, but for the fetch engine and the watches, each in its own
part of staging.
"""
