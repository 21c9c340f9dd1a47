"""From a source to tensors: the resolution order, the files it opens, the export they make.

loader.Loader   begin here: carries out a load's plan; local files, the daemon, the fallback
local           local files and directories, opened as they are
export          from open files to what a load returns
explanation     what ``explain`` says of each step of the plan
operations      what both clients, with and without asyncio, do alike
"""
