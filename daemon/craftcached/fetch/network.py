"""The daemon's connections to origins: which proxy, which certificates, which addresses.

aiohttp's own reading of the environment is switched off: it passes by proxies that it does not
understand, and sends what ``.netrc`` says to whichever host a user's URL names.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from craftcache.errors import PolicyDenied, Unavailable
from craftcache.network.addresses import is_public, literal_address
from craftcache.network.locations import origin_of
from craftcache.network.proxies import ProxyRules
from craftcache.network.tls import tls_context
from craftcache.sources import shown_url

from .faults import Fault, Trouble

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from craftcache.network.proxies import Proxy

__all__ = ["Network", "PrivateAddressError", "PublicResolver"]

log = logging.getLogger("craftcached")

READ_AHEAD_BYTES = 128 * 1024
"""Bytes of each connection buffered, beside the kernel's buffers, while a block is written."""


class Network:
    """Makes single requests; an async context manager, to be entered once.

    Args:
        user_agent: Sent with every request.
        connect_seconds: Patience for a connection, its name look-up and its TLS handshake.
        answer_seconds: Patience for the head of an answer.
        may_be_private: Whether a host and port that a user named may have a private, loopback or
            link-local address.
        rules: Rules for proxies; None reads the environment.
        resolver: Looks up the names in users' URLs; None asks the system. What is not public of its
            answers is left out.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        connect_seconds: float,
        answer_seconds: float,
        may_be_private: Callable[[str, int], bool] = lambda _host, _port: False,
        rules: ProxyRules | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._resolver = resolver
        self.rules = rules or ProxyRules()
        self._user_agent = user_agent
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._may_be_private = may_be_private
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(tls_context)  # reads files, once
        async with AsyncExitStack() as stack:
            # Two pools, so that no connection to a private address is lent to a user's URL.
            self._anywhere = await stack.enter_async_context(self._session(None))
            resolver = PublicResolver(self._may_be_private, self._resolver)
            self._public = await stack.enter_async_context(self._session(resolver))
            self._resources = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    def warn(self) -> None:
        """Log which proxies of the environment cannot be used."""
        for problem in self.rules.problems():
            log.warning("%s", problem)

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        source: str,
        public_only: bool,
        ca: str | None = None,
        answer_seconds: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Make one request; redirects are answers like any other.

        Args:
            method: HTTP method.
            url: Percent-encoded; sent as it is.
            headers: Headers of the request.
            source: The source, named in errors.
            public_only: Whether a user chose the address, so that it must be a public one.
            ca: Path of the only certificates believed; None for those of all origins.
            answer_seconds: Patience for the head of this answer, where it is another.

        Raises:
            Fault: There is no answer; another request may have one.
            PolicyDenied: The host has no public address.
            Unavailable: No further request helps.
        """
        try:
            proxy = self.rules.proxy_for(url)
        except Unavailable as error:
            raise error.about(source) from None
        if public_only:
            self._check_literal(url, source)
        session = self._public if public_only and proxy is None else self._anywhere
        try:
            async with asyncio.timeout(answer_seconds or self._answer_seconds):
                response = await session.request(
                    method,
                    URL(url, encoded=True),
                    headers=_sent(headers, proxy, url),
                    allow_redirects=False,
                    ssl=tls_context(ca) if ca else True,
                    proxy=proxy.url if proxy else None,
                    proxy_headers=proxy.headers if proxy else None,
                )
        except TimeoutError:
            raise Fault(Trouble.STALLED, f"{shown_url(url)} does not answer") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _failure(error, url, proxy, source) from None
        if proxy is not None and response.status == 407:
            response.close()
            raise proxy.refusal(407, origin_of(url)[1], source=source)
        return response

    def _session(self, resolver: AbstractResolver | None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls_context(), resolver=resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_seconds),
            auto_decompress=False,
            read_bufsize=READ_AHEAD_BYTES,
            trust_env=False,
        )

    def _check_literal(self, url: str, source: str) -> None:
        """Raise PolicyDenied for an address of which no name is looked up, if it is private."""
        _, host, port = origin_of(url)
        address = literal_address(host)
        is_private = address is not None and not is_public(address)
        if is_private and not self._may_be_private(host, port):
            raise _private(host, source)


class PrivateAddressError(OSError):
    """A name has private addresses only, and may not."""


class PublicResolver(AbstractResolver):
    """Looks names up and leaves out what is not public.

    What it answers is what is connected to: a name that means something else a moment later
    (DNS rebinding) leads nowhere new.

    Args:
        may_be_private: Returns whether a host and port are excepted.
        resolver: Resolver of names; None asks the system.
    """

    def __init__(
        self,
        may_be_private: Callable[[str, int], bool],
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._may_be_private = may_be_private
        self._resolver = resolver or aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily | int = 0
    ) -> list[ResolveResult]:
        """The public addresses of ``host``, or all of an excepted one.

        Raises:
            PrivateAddressError: It has none but private ones.
        """
        found = await self._resolver.resolve(host, port, family)  # type: ignore[arg-type]
        if self._may_be_private(host, port):
            return found
        public = [each for each in found if _is_public(each["host"])]
        if found and not public:
            raise PrivateAddressError(f"{host} has no public address")
        return public

    async def close(self) -> None:
        """Look nothing up any more."""
        await self._resolver.close()


def _is_public(host: str) -> bool:
    address = literal_address(host)
    return address is not None and is_public(address)


def _sent(headers: Mapping[str, str], proxy: Proxy | None, url: str) -> Mapping[str, str]:
    """The headers of a request; a proxy reads one of plain HTTP itself."""
    if proxy is not None and urlsplit(url).scheme == "http":
        return {**headers, **proxy.headers}
    return headers


def _failure(error: Exception, url: str, proxy: Proxy | None, source: str) -> Exception:
    """What a request's error means."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return Unavailable(
                f"the certificate of {error.host} is not trusted: {error.certificate_error}",
                source=source,
                hint="Name a private CA's bundle in SSL_CERT_FILE",
                retryable=False,
            )
        case aiohttp.InvalidURL():
            return Unavailable(
                f"{shown_url(url)} is no address that could be asked",
                source=source,
                hint="Check the URL with the publisher",
                retryable=False,
            )
        case aiohttp.ClientHttpProxyError() if proxy is not None and error.status < 500:
            return proxy.refusal(error.status, origin_of(url)[1], source=source)
        case aiohttp.ClientConnectorError(os_error=PrivateAddressError()):
            return _private(origin_of(url)[1], source)
    reason = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif isinstance(error, aiohttp.ClientHttpProxyError):
        reason = f"the proxy answers {error.status}"
    way = f" through the proxy {proxy.url}" if proxy is not None else ""
    return Fault(Trouble.LOST, f"the connection to {shown_url(url)}{way} failed: {reason}")


def _private(host: str, source: str) -> PolicyDenied:
    return PolicyDenied(
        f"{host} has a private, loopback or link-local address and is not in the setting "
        "private_hosts, so users may have nothing fetched from it",
        source=source,
        hint="Ask the administrator to name the host in private_hosts",
    )
