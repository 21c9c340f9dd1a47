"""One request to an origin and its answer, by httpx; redirects are the caller's to follow.

Requests go through httpx's transports and past its client, which would log each address with its
signature, and which reads proxies and ``.netrc`` in its own way. Blocking.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

import httpx

from craftcache.errors import Unavailable
from craftcache.sources import shown_url
from craftcache.version import VERSION

from .locations import MAX_REDIRECTS, REDIRECTS, origin_of, redirect_target
from .proxies import Proxy, ProxyRules
from .tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

__all__ = ["Exchange"]

_Failures: TypeAlias = tuple[type[Exception], ...]

_FAILURES: _Failures = (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError)

_HEADERS = {
    "User-Agent": f"craftcache/{VERSION}",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}


class Exchange:
    """Connections for the requests of one job; a context manager, used by one thread at a time.

    Args:
        source: As errors name it.
        read_seconds: Seconds without a byte after which an answer counts as lost.
        connect_seconds: Seconds allowed for a connection, its TLS handshake included.
        check_url: Called with each URL before it is asked; raises for one that must not be.
        ca: Path of the only certificates believed; None for those of all origins.
    """

    def __init__(
        self,
        source: str,
        *,
        read_seconds: float,
        connect_seconds: float,
        check_url: Callable[[str], None] = lambda _: None,
        ca: str | None = None,
    ) -> None:
        self._source = source
        self._timeout = httpx.Timeout(read_seconds, connect=connect_seconds)
        self._check_url = check_url
        self._ca = ca
        self._rules = ProxyRules()
        self._transports: dict[Proxy | None, httpx.HTTPTransport] = {}
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections, answers that are open included."""
        self._closing.close()

    def ask(self, method: str, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """Make one request; redirects are answers like any other.

        Raises:
            Unavailable: There is no answer, or a proxy in the way does not let it through.
            CraftcacheError: What ``check_url`` raises.
        """
        self._check_url(url)
        try:
            proxy = self._rules.proxy_for(url)
        except Unavailable as error:
            raise error.about(self._source) from None
        try:
            request = httpx.Request(
                method,
                url,
                headers={**_HEADERS, **headers},
                extensions={"timeout": self._timeout.as_dict()},
            )
            response = self._transport(proxy).handle_request(request)
        except _FAILURES as error:
            raise self.failure(error, url) from error
        response.request = request
        if proxy is not None and response.status_code == 407:
            response.close()
            raise proxy.refusal(407, request.url.host, source=self._source)
        return response

    def follow(
        self, method: str, url: str, headers: Mapping[str, str], credentials: Mapping[str, str]
    ) -> httpx.Response:
        """Make a request and follow where it leads; the answer is open.

        Args:
            method: HTTP method of each request.
            url: URL of the first request.
            headers: Headers of each request.
            credentials: Headers that ``url``'s own origin is sent beside, and no other.

        Raises:
            Unavailable: As for ask, or it leads nowhere.
            CraftcacheError: What ``check_url`` raises.
        """
        home, target = origin_of(url), url
        for _ in range(MAX_REDIRECTS + 1):
            own = credentials if origin_of(target) == home else {}
            response = self.ask(method, target, {**headers, **own})
            if response.status_code not in REDIRECTS:
                return response
            response.close()
            target = redirect_target(target, location_of(response), source=self._source)
        raise Unavailable(
            f"{shown_url(url)} redirects more than {MAX_REDIRECTS} times",
            source=self._source,
            hint="Check the URL with the publisher",
            retryable=False,
        )

    def failure(self, error: Exception, url: str) -> Unavailable:
        """What the user is told when httpx raised ``error`` over a request for ``url``."""
        proxy = self._rules.proxy_for(url)
        if untrusted := _certificate_error(error):
            whose = f"{httpx.URL(url).host} or of the proxy {proxy.url}" if proxy else None
            return Unavailable(
                f"the certificate of {whose or httpx.URL(url).host} is not trusted: "
                f"{untrusted.verify_message}",
                source=self._source,
                hint="Name a private CA's bundle in SSL_CERT_FILE",
                retryable=False,
            )
        status = str(error)[:3]  # of the proxy's answer to CONNECT
        if proxy and isinstance(error, httpx.ProxyError) and status.isdecimal():
            return proxy.refusal(int(status), httpx.URL(url).host, source=self._source)
        return _unreachable(url, proxy, type(error).__name__, self._source)

    def _transport(self, proxy: Proxy | None) -> httpx.HTTPTransport:
        if proxy not in self._transports:
            context = tls_context(self._ca)
            transport = httpx.HTTPTransport(
                verify=context,
                trust_env=False,
                proxy=None
                if proxy is None
                else httpx.Proxy(
                    proxy.url,
                    headers=proxy.headers,
                    ssl_context=context if proxy.scheme == "https" else None,
                ),
            )
            self._closing.callback(transport.close)
            self._transports[proxy] = transport
        return self._transports[proxy]


def location_of(response: httpx.Response) -> bytes | None:
    """The Location of an answer as it was sent."""
    return next((v for n, v in response.headers.raw if n.lower() == b"location"), None)


def _unreachable(url: str, proxy: Proxy | None, reason: str, source: str) -> Unavailable:
    way = f" through the proxy {proxy.url}" if proxy else ""
    hint = "Check the network, or warm the model while the origin is reachable"
    if proxy:
        hint = f"Check {proxy.variable}, or except the host in NO_PROXY"
    return Unavailable(
        f"{urlsplit(url).hostname} cannot be reached{way} ({reason})", source=source, hint=hint
    )


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None
