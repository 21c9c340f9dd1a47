"""Fixtures of the network's tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.client.network.askers import ASKERS, CONTENT, FILE, PATH, REPO
from tests.client.network.servers import Certificate, Proxy, TlsFront, make_certificate
from tests.support.hub import Data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.hub import TestHub


@dataclass(frozen=True)
class World:
    """A hub and its CDN, which only a proxy can find by name, by HTTP and by TLS."""

    hub: TestHub
    certificate: Certificate
    routes: dict[tuple[str, int], int]

    def proxy(self, **options: Any) -> Proxy:
        """A proxy that knows them."""
        return Proxy(self.routes, **options)

    def tls_proxy(self, **options: Any) -> Proxy:
        """Likewise, spoken to by TLS."""
        return self.proxy(context=self.certificate.context, **options)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """What all servers here show."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def world(threaded_hub: TestHub, certificate: Certificate) -> Iterator[World]:
    """A hub with one repository and one plain file."""
    threaded_hub.repo(REPO).commit({FILE: CONTENT}, lfs=[FILE])
    threaded_hub.files[PATH] = Data(CONTENT)
    ports = {
        "cdn.test": urlsplit(threaded_hub.cdn).port,
        "hub.test": urlsplit(threaded_hub.endpoint).port,
    }
    with (
        TlsFront(certificate.context, ports["cdn.test"] or 0) as cdn,
        TlsFront(certificate.context, ports["hub.test"] or 0) as front,
    ):
        routes = {(name, 80): port or 0 for name, port in ports.items()}
        routes |= {("cdn.test", 443): cdn.port, ("hub.test", 443): front.port}
        yield World(threaded_hub, certificate, routes)


@pytest.fixture(params=list(ASKERS))
def asker(request: pytest.FixtureRequest) -> str:
    """Who asks."""
    return str(request.param)


@pytest.fixture
def ask(asker: str, tmp_path: Path) -> Callable[..., object]:
    """Ask by a scheme: ``ask("https")``; fails as the asker fails."""
    host, call = ASKERS[asker]

    def asking(scheme: str, token: str | None = None) -> object:
        return call(f"{scheme}://{host}", tmp_path / "staging", token)

    return partial(asking)
