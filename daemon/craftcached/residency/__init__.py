"""Residency: how much of the cache is in memory.

    residency.Residency   reads files into memory and locks them there, as far as there is room
    page_cache            the system calls
    hashing_child         the process that hashes a file and leaves no pages of it behind

Memory here is the kernel's page cache, one copy for all workers.
"""
