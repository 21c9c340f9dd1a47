"""Fetching: from an origin's promise to verified, durable bytes in staging."""

from .engine import Engine
from .settings import EngineSettings
from .types import Fetched, Fetcher, Priority, RemoteFile
from .xet import xet_command

__all__ = [
    "Engine",
    "EngineSettings",
    "Fetched",
    "Fetcher",
    "Priority",
    "RemoteFile",
    "xet_command",
]
