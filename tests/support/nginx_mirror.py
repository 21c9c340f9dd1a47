"""The example mirror in a real nginx: rules as shipped, its site and address those of a test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import certifi

from tests.support.tools import needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.hub import TestHub

__all__ = ["EXAMPLES", "NginxMirror", "SLICE_BYTES", "needs_nginx"]

EXAMPLES = Path(__file__).parents[2] / "systemd" / "examples"

SLICE_BYTES = 256 * 1024
"""Small, so that small files have several."""

PATIENCE_S = 30.0

needs_nginx = needs("nginx")

SITE = """\
proxy_cache_path files levels=2:2 keys_zone=files:4m max_size={max_size} inactive=1d
                 use_temp_path=off;
proxy_cache_path answers keys_zone=answers:1m max_size=1m inactive=1d use_temp_path=off;
proxy_cache_path {rights} keys_zone=rights:1m max_size=1m inactive=1m use_temp_path=off;
slice {slice_bytes};
map "" $hub {{
    default {hub};
}}
map $cdn_host $cdn {{
    default "";
    "{cdn_host}" http://$cdn_host;
}}
map "" $self {{
    default unix:{own_socket};
}}
map "" $passed_authorization {{
    default {passed_authorization};
}}
proxy_ssl_trusted_certificate {certificates};
"""


class NginxMirror:
    """An nginx with the example's rules, in front of a test hub; a context manager.

    Its files are the world's to read in a directory of its own, for nginx's workers are another
    user's where the test is root's.

    Args:
        hub: The test hub.
        passes_tokens: Whether tokens are passed on to the Hub.
        files: Directory of the cached files; None puts it beside the others.
        max_size: As nginx writes it.
        slice_bytes: Bytes that it fetches and keeps as one.
    """

    def __init__(
        self,
        hub: TestHub,
        *,
        passes_tokens: bool = False,
        files: Path | None = None,
        max_size: str = "1g",
        slice_bytes: int = SLICE_BYTES,
    ) -> None:
        self._hub = hub
        self._passes_tokens = passes_tokens
        self._max_size = max_size
        self._slice_bytes = slice_bytes
        self._temporary = tempfile.TemporaryDirectory(prefix="ccm-")
        self.directory = Path(self._temporary.name)
        self.rights = self.directory / "rights"
        self.files = self.directory / "files"
        self._own_socket = self.directory / "self.sock"
        if files is not None:
            self.files.symlink_to(files)
        with socket.socket() as free:
            free.bind((hub.host, 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.name}"

    @property
    def name(self) -> str:
        """Its host and port."""
        return f"{self._hub.host}:{self.port}"

    def __enter__(self) -> Self:
        self.directory.chmod(0o755)
        (self.directory / "temp").mkdir()
        shutil.copy(EXAMPLES / "nginx-mirror.conf", self.directory)
        (self.directory / "nginx-mirror-listen.conf").write_text(
            f"listen {self.name};\nlisten unix:{self._own_socket};\n"
        )
        (self.directory / "nginx-mirror-site.conf").write_text(
            SITE.format(
                rights=self.rights,
                slice_bytes=self._slice_bytes,
                max_size=self._max_size,
                hub=self._hub.endpoint,
                own_socket=self._own_socket,
                certificates=certifi.where(),
                cdn_host=self._hub.cdn.removeprefix("http://"),
                passed_authorization="$http_authorization" if self._passes_tokens else '""',
            )
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._temporary.cleanup()

    def start(self) -> None:
        """Start it (again) with what it has kept, and wait until it answers."""
        self._own_socket.unlink(missing_ok=True)
        user = "user root;" if os.geteuid() == 0 else ""
        with (self.directory / "error.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "nginx",
                    *("-p", self.directory),
                    *("-c", self.directory / "nginx-mirror.conf"),
                    *("-g", f"daemon off; {user}"),
                ],
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "error.log").read_text()
            assert time.monotonic() < deadline, "nginx does not answer"

    def kill(self) -> None:
        """End it and its workers at once, as a crash of the machine would."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let it accept connections and never answer."""
        self._signal(signal.SIGSTOP)

    def cached(self) -> Iterator[Path]:
        """The files of its cache, one for each slice."""
        return (path for path in self.files.rglob("*") if path.is_file())

    def has_answer(self, path: str) -> bool:
        """Whether it knows what the Hub answers to a HEAD of ``path``."""
        key = f"KEY: HEAD {self._hub.endpoint}{path}\n".encode()
        found = (self.directory / "answers").iterdir()
        return any(key in each.read_bytes() for each in found if each.is_file())

    def everything_kept(self) -> bytes:
        """All that lies in its directory."""
        paths = (path for path in self.directory.rglob("*") if path.is_file())
        return b"".join(path.read_bytes() for path in paths)

    def corrupt(self, needle: bytes) -> None:
        """Turn a bit over in each cached slice that has ``needle``, right behind it."""
        found = [path for path in self.cached() if needle in path.read_bytes()]
        assert found
        for path in found:
            data = bytearray(path.read_bytes())
            data[data.index(needle) + len(needle)] ^= 1
            path.write_bytes(data)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            socket.create_connection((self._hub.host, self.port), timeout=1).close()
        except OSError:
            return False
        return True
