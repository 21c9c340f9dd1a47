"""Warming: from a source's name to a published manifest.

    warmer.Warmer          which files are wanted, and whether they are published already
    running                one warm for all who ask for the same, and how far each has come
    pipeline               described, admitted, verified, published
    description            the values that pass from one step of it to the next
    origins                what is said of files: address, size, digest, credentials
    hub_origin             what the Hub says of them
    url_origin             what a web server says of them
    hub                    asks the Hub or, while it does not answer, its mirrors
    admission              room and budget for described files, before their first byte
    acquire.FileAcquirer   decides where the bytes of a described file come from, and verifies them
    inspections            whether a verified file is safe to load, each checkpoint looked at once
    dependencies           the other sources that a published model needs
    pace                   how far a warm has come, how fast, and how long it will take
    stalls                 whether the downloads that a request waits for still progress
    hub_lock               huggingface_hub's lock of a blob, held while it is fetched
    progress               progress of shared work, reported to each request under its own source
    tasks                  several coroutines at once
    queue                  queued warms, which survive a restart
    locked                 what a lock asks of a warm
    planner                what a warm would take
    bundles                models that come in a file, with their lock
    allow                  which sources this node may fetch

A source that several requests ask for at once is warmed once.
"""
