"""Whose certificates are believed: one answer for all that is asked by TLS."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache

__all__ = ["tls_context"]


def tls_context(ca: str | None = None) -> ssl.SSLContext:
    """The context of every TLS connection to an origin or a proxy; reads files when it is made.

    A mirror may have certificates of its own: with ``ca``, the path of a bundle, it alone is
    believed.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` replace what is believed, as OpenSSL reads them. Without
    them it is what the machine believes, and what certifi lists: containers often have no
    certificates of their own.
    """
    if ca:
        return _context_of(ca)
    return _context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=16)
def _context_of(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


@lru_cache(maxsize=4)
def _context(file: str | None, directory: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not file and not directory:
        import certifi  # httpx brings it

        context.load_verify_locations(certifi.where())
    return context
