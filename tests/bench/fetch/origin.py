"""A real web server on loopback: nginx with one large file, uncapped and capped by connection.

``/repo/...`` answers as the Hub does for an LFS file, so that huggingface_hub can take part.
The access log says what was asked for and what was sent.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LargeFile", "Origin", "CAPPED_RATE", "REPO_ID", "FILENAME"]

CAPPED_RATE = 40_000_000
"""Bytes a second for each connection to the capped port, as content delivery networks do."""

REPO_ID = "bench/model"
FILENAME = "state_dict.bin"
OPAQUE_FILENAME = "weights.safetensors"
"""The same file under a name that no daemon takes for a checkpoint and looks into."""
COMMIT = "c" * 40
CDN_HOST = "127.0.0.2"
"""The Hub redirects to another host, and huggingface_hub expects that."""

_CONFIG = """
user {user}; daemon off; worker_processes 2; pid {base}/pid; error_log {base}/error.log;
events {{ }}
http {{
  log_format spans '$request_method $status $body_bytes_sent $http_range';
  sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_body_temp_path {base}/t1; proxy_temp_path {base}/t2; fastcgi_temp_path {base}/t3;
  uwsgi_temp_path {base}/t4; scgi_temp_path {base}/t5;
  server {{ listen 127.0.0.1:{port}; listen {cdn}:{port}; {body} }}
  server {{
    listen 127.0.0.1:{capped_port}; listen {cdn}:{capped_port}; limit_rate {rate}; {body}
  }}
}}
"""

_BODY = """
  location / {{ root {www}; access_log {base}/access.log spans; }}
  location /{repo}/resolve/ {{
    access_log off;
    add_header X-Repo-Commit {commit} always;
    add_header X-Linked-Etag '"{sha256}"' always;
    add_header X-Linked-Size {size} always;
    add_header ETag '"{sha256}"' always;
    return 302 http://{cdn}:$server_port/{filename};
  }}
"""


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A file to serve, with its digest."""

    path: Path
    size: int
    sha256: str

    @classmethod
    def make(cls, path: Path, size: int, *, sparse: bool = False) -> LargeFile:
        """Random bytes, or a hole, which costs no disk."""
        digest = hashlib.sha256()
        block = bytes(1024 * 1024)
        with path.open("wb") as file, Path("/dev/urandom").open("rb") as random:
            file.truncate(size)
            for offset in range(0, size, len(block)):
                data = (
                    block[: size - offset]
                    if sparse
                    else random.read(min(len(block), size - offset))
                )
                if not sparse:
                    file.write(data)
                digest.update(data)
        return cls(path, size, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was asked of the origin and what it sent, in bytes of bodies."""

    asked: int
    sent: int


class Origin:
    """nginx, serving ``file`` as ``/state_dict.bin`` until it is left."""

    def __init__(self, base: Path, file: LargeFile) -> None:
        self._base = base
        self._file = file
        self._port, self._capped_port = _free_ports(2)
        self._log = self._base / "access.log"

    def __enter__(self) -> Self:
        www = self._base / "www"
        www.mkdir(parents=True)
        for name in (FILENAME, OPAQUE_FILENAME):
            (www / name).hardlink_to(self._file.path)
        body = _BODY.format(
            base=self._base,
            www=www,
            cdn=CDN_HOST,
            repo=REPO_ID,
            commit=COMMIT,
            sha256=self._file.sha256,
            size=self._file.size,
            filename=FILENAME,
        )
        config = self._base / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                cdn=CDN_HOST,
                user=getpass.getuser(),
                base=self._base,
                port=self._port,
                capped_port=self._capped_port,
                rate=CAPPED_RATE,
                body=body,
            )
        )
        nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if nginx is None:
            raise SystemExit("the benchmark needs nginx: apt-get install nginx aria2 curl")
        self._process = subprocess.Popen([nginx, "-c", config, "-e", self._base / "error.log"])
        _wait_listening(self._port, self._process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def endpoint(self, *, capped: bool) -> str:
        """The address of the server, which is a Hub's as well."""
        return f"http://127.0.0.1:{self._capped_port if capped else self._port}"

    def url(self, *, capped: bool) -> str:
        """The address of the file."""
        return f"{self.endpoint(capped=capped)}/{FILENAME}"

    def opaque_url(self, *, capped: bool) -> str:
        """The address of the file under its other name."""
        return f"{self.endpoint(capped=capped)}/{OPAQUE_FILENAME}"

    def traffic(self) -> Traffic:
        """All that was asked for and sent so far."""
        asked = sent = 0
        for line in self._log.read_text().splitlines():
            _, status, body, wanted = line.split(" ", 3)
            if status not in {"200", "206"}:
                continue
            sent += int(body)
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            asked += int(span[2]) - int(span[1]) + 1 if span else self._file.size
        return Traffic(asked, sent)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _wait_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            return
    raise SystemExit("nginx did not start; see its error.log")
