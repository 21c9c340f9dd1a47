"""Warming: from a source's name to a published manifest.

    warmer.Warmer          one source, once for all who ask
    acquire.FileAcquirer   one file of it, from wherever it costs least
    origins                descriptions of files by the Hub and by URLs
    stalls                 notices a download that makes no progress
    hub_lock               huggingface_hub's lock of a blob, held while it is fetched
    queue                  queued warms, which survive a restart
    allow                  which sources this node fetches

What is asked for twice at once is brought once, whoever asks.
"""
