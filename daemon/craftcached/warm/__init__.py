"""Bringing models into the cache: from a source's name to a published manifest.

    warm.Warmer        a source, once for all who ask
    obtain.FileAcquirer    a file of it, wherever it can be had most cheaply
    origins            what the Hub or a URL says of it
    flights            one running task for any number of requests for the same thing
    hub_lock           huggingface_hub's lock of a blob, while it comes
    allow              which sources this node fetches

What is asked for twice at once is brought once, whoever asks.
"""
