"""What of the cache is in memory.

    residency.Residency   brings files in and keeps them there, as far as there is room
    pages                 the system calls

Memory here is the kernel's page cache, one copy for all workers.
"""
