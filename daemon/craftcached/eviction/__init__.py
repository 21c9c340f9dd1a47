"""Making room: what may go, what must stay.

    eviction           which models go, as a pure function
    evictor.Evictor    looks, has it choose, removes
    uses               what was used when
    pins               what stays whatever happens
    leases             what the kernel says is in use
    housekeeping       what is done from time to time, and after each change

What is in use is never evicted: unlinking it would free nothing.
"""
