"""Bringing models into the cache: from a source's name to a published manifest.

    warm.Warmer        the pipeline, once for all who ask for a source
    dependencies       what a published model needs as well
    description        the values that pass from one step to the next
    origins            what the Hub or a URL says of files, and where their ranges are opened
    obtain.FileAcquirer    described files, verified, from wherever they can be had most cheaply
    flights            one running task for any number of requests for the same thing
    hub_lock           huggingface_hub's lock of a blob, while it comes
    reception          whether anything still comes of what a request waits for
    progress           shared work, told to each request as of its own source
    allow              which sources this node fetches

What is asked for twice at once is brought once, whoever asks.
"""
