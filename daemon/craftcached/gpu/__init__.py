"""The service of one GPU: a process beside the daemon that holds models in the GPU's memory.

It is a client of the daemon: it asks for what a worker asks it for, takes the verified files, and
copies each into a block of the GPU's memory as it is, byte for byte. Workers get a descriptor of
the block in place of the file's, map it for reading and make tensors in it by the index that the
daemon made. So a model is there once, however many workers have it.

A block lives from the end of its copy until it goes: a time after its last lease was given back,
earlier if another model needs its room, or at once if its bytes turn out wrong. What workers have
mapped by then stays theirs until they let go of it.
"""
