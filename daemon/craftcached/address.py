"""Where a TCP socket listens, as settings write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Address"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a TCP socket listens.

    Attributes:
        host: A name or an address, without the brackets that one of IPv6 has before a port.
        port: From 0 to 65535; 0 lets the system choose.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that is written ``host:port`` or ``[::1]:port``.

        Raises:
            ValueError: It is not written so.
        """
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+)):(\d{1,5})", text, re.ASCII)
        if found is None or int(found[3]) > 65535:
            raise ValueError(f"{text!r} is no address like 127.0.0.1:9464")
        return cls(found[1] or found[2], int(found[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
