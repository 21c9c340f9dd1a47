"""Which addresses bytes may be fetched from; the same rule for the daemon and for a worker."""

from __future__ import annotations

from urllib.parse import urlsplit

from craftcache.errors import PolicyDenied
from craftcache.network.locations import origin_of
from craftcache.sources import shown_url

__all__ = ["UrlPolicy"]


class UrlPolicy:
    """``https://`` anywhere; ``http://`` only for hosts that the settings name.

    Args:
        insecure_hosts: Host names and addresses, without port, that plain HTTP is allowed for.
        hub_endpoint: The Hub's own address: configuring it is trusting its host with what it
            serves itself, and with what it redirects to on that host.
        private_hosts: Host names and addresses, without port, that users may have fetched from
            although they are private, beside those in ``insecure_hosts``.
    """

    def __init__(
        self,
        *,
        insecure_hosts: frozenset[str],
        hub_endpoint: str,
        private_hosts: frozenset[str] = frozenset(),
    ) -> None:
        hub = urlsplit(hub_endpoint)
        self._hub_origin = origin_of(hub_endpoint)[1:]
        is_trusted = hub.scheme == "http" and hub.hostname
        self._hub = frozenset({hub.hostname or ""} if is_trusted else ())
        self.allow_insecure(insecure_hosts)
        self.allow_private(private_hosts)

    def allow_insecure(self, hosts: frozenset[str]) -> None:
        """Allow plain HTTP for these hosts, and no others beside the Hub's, from now on."""
        self._insecure = hosts

    def allow_private(self, hosts: frozenset[str]) -> None:
        """Let these hosts, and those that plain HTTP is allowed for, be private from now on."""
        self._private = hosts

    def may_be_private(self, host: str, port: int) -> bool:
        """Whether a user's URL may lead to ``host`` where it has a private or loopback address."""
        return host in self._insecure | self._private or (host, port) == self._hub_origin

    def check_source(self, url: str) -> None:
        """Raise PolicyDenied unless ``url`` may be named as a source."""
        self._check(url, self._insecure)

    def check_url(self, url: str) -> None:
        """Raise PolicyDenied unless ``url`` may be requested; redirect targets included."""
        self._check(url, self._insecure | self._hub)

    def _check(self, url: str, insecure: frozenset[str]) -> None:
        parts = urlsplit(url)
        if parts.scheme == "https" and parts.hostname:
            return
        if parts.scheme == "http" and parts.hostname in insecure:
            return
        raise PolicyDenied(
            f"{shown_url(url)} may not be fetched, because it is not https:// and its host is not "
            "in the setting insecure_hosts",
            source=shown_url(url),
            hint="Use https://, or name the host in insecure_hosts",
        )
