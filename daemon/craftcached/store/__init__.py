"""The cache directory in the daemon's hands.

    store.Store        publishes and finds; the only writer
    handout.BlobOpener    opens what is published, for workers
    removal            takes models out, and what nobody else needs of them

Nothing else in the daemon writes there, but for the fetch engine in its own staging.
"""
