"""From a file into the memory of a device, as fast as the link between them.

Several threads read spans of the file into page-locked buffers and enqueue the copies from there,
each upon a stream of its own, so that reading and copying overlap. The parts:

- ``accelerator``: what is asked of a device, a small protocol; ``torch_accelerator`` is torch's.
- ``link``: the way to one device: its accelerator, the buffers and what may end a load.
- ``pieces``: how the storages of a file are cut into what one buffer holds.
- ``file_reader``: reads a span from the page cache or, past it, from the disk.
- ``staging``: the page-locked buffers that the process keeps.
- ``copy_job``: what goes through one buffer.
- ``pipeline``: the threads, their order and their end.

Nothing here knows of checkpoints, and nothing imports torch before a device is used.
"""
