"""Fetching: from an origin's promise to verified, durable bytes in staging."""

from .types import Fetched, Fetcher, Priority, RemoteFile

__all__ = ["Fetched", "Fetcher", "Priority", "RemoteFile"]
