"""Residency: how much of the cache is in memory.

    residency.Residency   reads files into memory and locks them there, as far as there is room
    page_cache            the system calls

Memory here is the kernel's page cache, one copy for all workers.
"""
