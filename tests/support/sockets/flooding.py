"""A program of another user that takes all it can get and gives nothing back.

Arguments: the socket, the uid to become, which needs root, and what to load. It holds on to what
it has until its standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys

from craftcache.sources import parse
from craftcache.wire import Hello, Load, encode

PATH, UID, SOURCE = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.setresuid(UID, UID, UID)

hello, load = encode(Hello()), encode(Load(parse(SOURCE)))
held = []
for _ in range(200):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(PATH)
    with contextlib.suppress(BrokenPipeError):  # refused already
        connection.send(hello)
        connection.send(load)
    held.append(connection)
print("holding", len(held), flush=True)
sys.stdin.read()
