"""Both ends of a worker socket for tests: a real server in a thread, and a client that may lie."""

from .backend import FunctionBackend, file_info, load, status
from .raw import RawWorker, check_others_are_served, greeted
from .scripted import ScriptedDaemon
from .serving import Serving, serving

__all__ = [
    "FunctionBackend",
    "RawWorker",
    "ScriptedDaemon",
    "Serving",
    "serving",
    "greeted",
    "check_others_are_served",
    "file_info",
    "load",
    "status",
]
