"""The cache directory: what stands where, what may be believed, in which order it is written.

    directory.CacheDir   the directory as a whole
    hub_cache            the part that is huggingface_hub's own
    manifest             which verified files a source consists of, in values that are checked
    torch_links          the part that is torch.hub's
    publish              the one order in which names are given
    opened               files held open, and what is known of each
    durable              writes that survive power loss

Daemon and worker read and write it by this code alone, so that they cannot disagree.
"""
