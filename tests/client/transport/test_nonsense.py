"""A daemon that does not keep to the protocol."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from craftcache.cache.opened import OpenFile
from craftcache.daemon.transport import DaemonUnavailable, WorkerSocket
from craftcache.errors import ProtocolMismatch
from craftcache.wire import (
    Hello,
    Loaded,
    Resolved,
    Status,
    Versions,
    encode,
)
from tests.support.sockets import ScriptedDaemon, file_info, load, status
from tests.support.sockets.scripted import answer, wait_closed
from tests.support.worker_client import ENDLESS, ask

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "messages",
    [
        (b"garbage",),
        (b'{"type": "stranger"}',),
        (encode(status(watches={"y" * 60_000: 1})) + b" " * 6000,),
        (Hello(),),
        (Resolved("a", 1, 1),),
        (Loaded("a", "r", (OpenFile(file_info(), -1),)),),
        (load("org/name"),),
    ],
    ids=["garbage", "stranger", "too large", "hello twice", "other answer", "no files", "request"],
)
def test_nonsense_is_a_broken_daemon(tmp_path: Path, messages: tuple[Any, ...]) -> None:
    with ScriptedDaemon(tmp_path / "s", answer(*messages)), pytest.raises(DaemonUnavailable):
        ask(WorkerSocket(tmp_path / "s", deadlines=ENDLESS), Status())


def test_an_answer_without_a_hello_is_nonsense(tmp_path: Path) -> None:
    def forget_hello(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        connection.send(encode(status()))
        wait_closed(daemon, connection)

    with ScriptedDaemon(tmp_path / "s", forget_hello), pytest.raises(DaemonUnavailable):
        ask(WorkerSocket(tmp_path / "s", deadlines=ENDLESS), Status())


@pytest.mark.parametrize("count", [1, 3, 40])
def test_descriptors_that_do_not_belong_are_closed(
    tmp_path: Path, count: int, no_descriptor_leaks: None
) -> None:
    def send_too_many(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        connection.send(encode(Hello()))
        served = OpenFile(file_info(), -1, -1)
        message = encode(Loaded("org/name", "r", (served,)))
        socket.send_fds(connection, [message], [connection.fileno()] * count)
        wait_closed(daemon, connection)

    with ScriptedDaemon(tmp_path / "s", send_too_many), pytest.raises(DaemonUnavailable):
        ask(WorkerSocket(tmp_path / "s", deadlines=ENDLESS), load("org/name"))


def test_no_common_version_is_a_mismatch(tmp_path: Path) -> None:
    def newer(daemon: ScriptedDaemon, connection: socket.socket) -> None:
        connection.send(encode(Hello(Versions(2, 3), "craftcache 9")))
        wait_closed(daemon, connection)

    with ScriptedDaemon(tmp_path / "s", newer), pytest.raises(ProtocolMismatch, match="2 to 3"):
        ask(WorkerSocket(tmp_path / "s", deadlines=ENDLESS), Status())
