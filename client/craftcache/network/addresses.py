"""Which addresses are public: reachable by anybody, and so no way into the node or its network."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TypeAlias

__all__ = ["Address", "is_public", "literal_address"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NUMBERS = re.compile(r"(?:0[xX])?[0-9a-fA-F]+(?:\.(?:0[xX])?[0-9a-fA-F]+){0,3}")

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""A gateway reaches the IPv4 address in the last 32 bits."""


def literal_address(host: str) -> Address | None:
    """``host`` as the address that it is, without brackets or zone; None for a name.

    Also in the old spellings of IPv4 that systems read without a name look-up: ``127.1``, a
    single number, hexadecimal and octal ones.
    """
    bare = host.strip("[]").partition("%")[0].rstrip(".")
    try:
        return ipaddress.ip_address(bare)
    except ValueError:
        pass
    try:
        old = socket.inet_aton(bare) if _NUMBERS.fullmatch(bare) else None
    except OSError:
        return None
    return None if old is None else ipaddress.IPv4Address(old)


def is_public(address: Address) -> bool:
    """Whether ``address`` is no private, loopback, link-local, shared or reserved one.

    An IPv6 address that stands for an IPv4 one (mapped, 6to4, Teredo, NAT64) is what that is.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or int(address) >> 32 == 0:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
