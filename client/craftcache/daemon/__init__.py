"""The daemon as a client sees it: the worker socket, and HTTP for administration."""
