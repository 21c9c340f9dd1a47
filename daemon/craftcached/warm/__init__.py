"""Warming: from a source's name to a published manifest.

    warmer.Warmer          the pipeline, once for all who ask for a source
    description            the values that pass from one step of it to the next
    origins                what the Hub or a URL says of files, and where their ranges are opened
    acquire.FileAcquirer   described files, verified, from wherever they cost least
    dependencies           what a published model needs as well
    stalls                 whether anything still comes of what a request waits for
    hub_lock               huggingface_hub's lock of a blob, held while it is fetched
    progress               shared work, told to each request as of its own source
    tasks                  several coroutines at once
    queue                  queued warms, which survive a restart
    allow                  which sources this node fetches

What is asked for twice at once is brought once, whoever asks.
"""
