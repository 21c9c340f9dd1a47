"""Which proxy a request goes through: one reading of the environment, as curl reads it.

``https_proxy`` counts for ``https://`` addresses, ``http_proxy`` for ``http://`` ones and
``all_proxy`` where there is no such variable, each in capitals as well; the small spelling wins,
also when it is empty, which means no proxy. ``HTTP_PROXY`` does not count in a CGI script, where a
request's ``Proxy:`` header sets it.

``no_proxy`` lists, separated by commas or spaces, what is asked directly: a host name (with all
names below it, a leading dot or ``*.`` or not), an address, a network like ``10.0.0.0/8``, each
with a port or without, or ``*`` for everything. Names are not looked up for it.

A proxy that cannot be used is an error of every request that it counts for: a request that was to
go through a proxy never goes past it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote, unquote_to_bytes, urlsplit

from craftcache.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Proxy", "ProxyRules"]

DEFAULT_PORTS = {"http": 80, "https": 443}

CURLS_PORT = 1080
"""Port of a proxy that is written without a scheme and without a port; curl's default."""

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_HOST = re.compile(r"[A-Za-z0-9_.-]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is spoken to in HTTP.

    Attributes:
        scheme: ``http``, or ``https`` for one that is spoken to by TLS.
        host: Name or address of the proxy, IPv6 without brackets.
        port: Port of the proxy.
        userinfo: ``user:password``, percent-encoded as it was written, or None; a secret.
        variable: The variable of the environment that names it.
    """

    scheme: str
    host: str
    port: int
    userinfo: str | None = field(default=None, repr=False)
    variable: str = field(default="", compare=False)

    @property
    def url(self) -> str:
        """Its address, without user and password."""
        return f"{self.scheme}://{self._authority}"

    @property
    def spelled(self) -> str:
        """Its address as another program is given it, with user and password: a secret."""
        if self.userinfo is None:
            return self.url
        userinfo = quote(self.userinfo, safe="%:!$&'()*+,;=-._~")
        return f"{self.scheme}://{userinfo}@{self._authority}"

    @property
    def headers(self) -> dict[str, str]:
        """What it alone is sent."""
        if self.userinfo is None:
            return {}
        name, _, password = self.userinfo.partition(":")
        raw = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
        return {"Proxy-Authorization": f"Basic {b64encode(raw).decode('ascii')}"}

    def refusal(self, status: int, host: str, *, source: str) -> Unavailable:
        """What the user is told where the proxy answers ``status`` instead of ``host``."""
        why = ": user or password are wrong or missing" if status == 407 else ""
        return Unavailable(
            f"{host} cannot be reached through the proxy {self.url}: it answers {status}{why}",
            source=source,
            hint=f"Check {self.variable}, or except the host in NO_PROXY",
            retryable=status >= 500,
        )

    @property
    def _authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class _Exception:
    """One entry of ``no_proxy``."""

    name: str = ""
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    port: int | None = None

    def covers(self, host: str, address: _Address | None, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.network is not None:
            return address is not None and address in self.network
        return host == self.name or (address is None and host.endswith(f".{self.name}"))


class ProxyRules:
    """The proxies of one environment.

    Args:
        environment: Environment with the variables; read at once.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        is_cgi = "REQUEST_METHOD" in environment
        self._written: dict[str, tuple[str, str]] = {}
        for scheme in ("http", "https", "all"):
            names = [f"{scheme}_proxy", f"{scheme}_proxy".upper()]
            if scheme == "http" and is_cgi:
                names.pop()
            for name in names:
                if name in environment:
                    self._written[scheme] = (name, environment[name].strip())
                    break
        self._listed = environment.get("no_proxy", environment.get("NO_PROXY", ""))
        entries = re.split(r"[,\s]+", self._listed)
        self._bypass_all = "*" in entries
        self._bypassed = tuple(_exceptions(entries))

    def proxy_for(self, url: str) -> Proxy | None:
        """The proxy that a request for ``url`` goes through; None for none.

        Raises:
            Unavailable: There is one that cannot be used; not retryable.
        """
        parts = urlsplit(url)
        scheme = parts.scheme.lower()
        name, written = self._named(scheme)
        if not written or self._bypass_all:
            return None
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or DEFAULT_PORTS.get(scheme, 0)
        address = _address(host)
        if any(entry.covers(host, address, port) for entry in self._bypassed):
            return None
        return _parsed(written, name)

    def to_environment(self) -> dict[str, str]:
        """These rules as variables for a program that reads them in its own way; holds secrets.

        Raises:
            Unavailable: A proxy that is named cannot be used.
        """
        variables = {"no_proxy": self._listed, "NO_PROXY": self._listed}
        for scheme in DEFAULT_PORTS:
            name, written = self._named(scheme)
            if written:
                proxy = _parsed(written, name).spelled
                variables |= {f"{scheme}_proxy": proxy, f"{scheme}_proxy".upper(): proxy}
        return variables

    def problems(self) -> list[Unavailable]:
        """The faults of the named proxies, for a caller that reports them before any request."""
        found = []
        for name, written in self._written.values():
            try:
                if written:
                    _parsed(written, name)
            except Unavailable as error:
                found.append(error)
        return found

    def _named(self, scheme: str) -> tuple[str, str]:
        """Name and value of the variable that counts for ``scheme``; empty if there is none."""
        for kind in (scheme, "all"):
            name, written = self._written.get(kind, ("", ""))
            if written:
                return name, written
        return "", ""


def _exceptions(entries: list[str]) -> Iterator[_Exception]:
    for written in entries:
        entry = written.lower()
        host, port = _host_and_port(entry)
        try:
            yield _Exception(network=_network(host), port=port)
            continue
        except ValueError:
            pass
        name = host.removeprefix("*").strip(".")
        if name:
            yield _Exception(name=name, port=port)


def _host_and_port(entry: str) -> tuple[str, int | None]:
    """``host``, ``host:port``, ``[::1]:port`` or a bare IPv6 address taken apart."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](/[0-9]+)?(?::([0-9]+))?", entry)
    if bracketed:
        host, length, port = bracketed.groups()
        return host + (length or ""), int(port) if port else None
    host, colon, port = entry.rpartition(":")
    if colon and ":" not in host and port.isascii() and port.isdecimal():
        return host, int(port)
    return entry, None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(text, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.ip_network((mapped, network.prefixlen - 96), strict=False)
    return network


def _address(host: str) -> _Address | None:
    """``host`` as an address, IPv4 in IPv6 as IPv4; None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _parsed(written: str, variable: str) -> Proxy:
    """The proxy that a variable names.

    Raises:
        Unavailable: It names none that can be used; says nothing of what may be a password.
    """
    match = _SCHEME.match(written)
    scheme = match[1].lower() if match else "http"
    if scheme not in DEFAULT_PORTS:
        raise _unusable(
            f"the proxy in {variable} is written {scheme}://, which craftcache does not speak",
            f"Name an http:// or https:// proxy in {variable}, or except the host in NO_PROXY",
        )
    rest = written[match.end() :] if match else written.removeprefix("//")
    user, at, place = rest.rpartition("@")
    place = re.split(r"[/?#]", place, maxsplit=1)[0]
    host, port = _place(place)
    if host is None or not 0 < (1 if port is None else port) < 65536:
        raise _unusable(
            f"the proxy in {variable} cannot be read: it has no host, or a port that is none",
            f"Write {variable} as http://host:port",
        )
    if port is None:
        port = DEFAULT_PORTS[scheme] if match else CURLS_PORT
    return Proxy(scheme, host, port, user if at else None, variable)


def _place(place: str) -> tuple[str | None, int | None]:
    host, port = _host_and_port(place.lower())
    if _address(host) is None and not _HOST.fullmatch(host):
        return None, None
    return host, port


def _unusable(message: str, hint: str) -> Unavailable:
    return Unavailable(message, hint=hint, retryable=False)
