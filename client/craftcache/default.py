"""The default client's methods as functions; it reads the environment at the first use of one."""

from __future__ import annotations

from typing import Any

from .client import Client

__all__ = [
    "load",
    "load_state_dict",
    "load_into",
    "resolve",
    "warm",
    "follow",
    "status",
    "models",
    "explain",
]


class _ClientOfFirstUse(Client):
    """A client that its first use makes, from the environment as it is then."""

    def __init__(self) -> None:
        """Make nothing yet: what Client makes is made when it is missed."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever Client makes
        if name != "_do":
            raise AttributeError(name)
        super().__init__()
        return self._do


_client = _ClientOfFirstUse()

load = _client.load
load_state_dict = _client.load_state_dict
load_into = _client.load_into
resolve = _client.resolve
warm = _client.warm
follow = _client.follow
status = _client.status
models = _client.models
explain = _client.explain
