"""The daemon's HTTP interface as any HTTP client sees it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Api"]

NDJSON = {"Accept": "application/x-ndjson"}


class Api:
    """Requests over ``craftcache.sock``; a context manager.

    Args:
        socket_dir: The daemon's.
        timeout: Seconds without a byte after which a request fails.
    """

    def __init__(self, socket_dir: Path, timeout: float = 60.0) -> None:
        transport = httpx.HTTPTransport(uds=str(socket_dir / "craftcache.sock"))
        self._client = httpx.Client(
            transport=transport, base_url="http://craftcached/v1", timeout=timeout
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request; ``path`` below ``/v1``."""
        return self._client.request(method, path, **options)

    def get(self, path: str) -> dict[str, Any]:
        """The JSON of a GET that succeeds."""
        response = self.request("GET", path)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def warm(self, *sources: str, files: tuple[str, ...] = (), wait: bool = True) -> httpx.Response:
        """Warm, waiting for it or not."""
        body = {"sources": list(sources), "files": list(files), "wait": wait}
        return self.request("POST", "/warm", json=body)

    @contextmanager
    def warming(
        self, *sources: str, files: tuple[str, ...] = ()
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """A warm that streams what happens; leaving the context early goes away in the middle."""
        body = {"sources": list(sources), "files": list(files)}
        with self.streaming("POST", "/warm", body) as events:
            yield events

    @contextmanager
    def streaming(self, method: str, path: str, body: object) -> Iterator[Iterator[dict[str, Any]]]:
        """Likewise for any request."""
        with self._client.stream(method, path, json=body, headers=NDJSON) as response:
            assert response.status_code == 200
            assert response.headers["Content-Type"] == NDJSON["Accept"]
            yield map(json.loads, response.iter_lines())

    def delete(self, source: str) -> httpx.Response:
        """Remove a model."""
        return self.request("DELETE", f"/models/{quote(source, safe='')}")
