"""From a checkpoint's open file to what torch.load would have returned.

    filenames      which files of a source are checkpoints
    contents       what a checkpoint holds, in numbers
    index          what a checkpoint holds, so that nobody need unpickle it
    reader         the index of a checkpoint, read from its file without torch
    tensors        tensors from an index and the file it describes
    weights_only   torch's own load, for what no index can hold
    torch_load     that load as torch shipped it, whoever has replaced it
    inspection     whether a file that no daemon looked at can be loaded safely
    recognize      what a file is that is no checkpoint
    descriptor     reading a file by its descriptor alone

No pickle gets to run code here, whichever way a checkpoint comes.
"""
