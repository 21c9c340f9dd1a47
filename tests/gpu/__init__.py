"""What needs a GPU: its tests, and one command for them and the benchmark.

``python -m tests.gpu`` (``make gpu``) prints one JSON document and takes at most six minutes.
Without a GPU, in the suite above all, the same tests run on a device that is emulated on the CPU.
"""
