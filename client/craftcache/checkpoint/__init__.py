"""From a checkpoint's open file to what torch.load would have returned.

    filenames      which files of a source are checkpoints
    contents       what a checkpoint holds, in numbers
    index          the content of a checkpoint as data, read without unpickling
    reader         the index of a checkpoint, read from its file without torch
    tensors        tensors from an index and the file it describes
    weights_only   torch's own load, for what no index can hold
    torch_load     torch's own load, also where the process has replaced it
    recognize      what a file is that is no checkpoint
    descriptor     reading a file by its descriptor alone

No pickle gets to run code here, whichever way a checkpoint comes.
"""
