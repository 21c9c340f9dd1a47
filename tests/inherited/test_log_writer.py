"""A log that nobody reads: nobody waits for it, and what was lost is said."""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from craftcached.log_writer import LogWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE_BYTES = 65536
"""What a pipe holds that nobody reads."""


class Pipe:
    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> None:
        os.set_blocking(self.writer, False)
        try:
            while True:
                os.write(self.writer, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)

    def read(self) -> str:
        """All until its writers have gone, without what it was filled with."""
        os.close(self.writer)
        self.writer = -1
        with os.fdopen(os.dup(self.reader), "rb") as file:
            return file.read().lstrip(b"x").decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for descriptor in (pipe.reader, pipe.writer):
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def logging_to(handler: logging.Handler) -> Iterator[logging.Logger]:
    logger = logging.getLogger("craftcached.test")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)


def test_lines_come_in_order_and_all_before_the_end(pipe: Pipe) -> None:
    with LogWriter(pipe.writer) as writer, logging_to(writer) as log:
        for number in range(1000):
            log.info("line %d", number)
        print("a traceback, say", file=sys.stderr)
    assert sys.stderr is not writer
    lines = pipe.read().splitlines()
    assert lines == [*(f"line {number}" for number in range(1000)), "a traceback, say"]


def test_nobody_waits_for_a_full_pipe_and_what_was_lost_is_counted(pipe: Pipe) -> None:
    pipe.fill()
    said = b""
    with LogWriter(pipe.writer, queue_bytes=100) as writer, logging_to(writer) as log:
        for number in range(1000):
            log.info("%09d", number)
        while b"dropped" not in said:  # it is read only now
            said = (said + os.read(pipe.reader, 4096)).lstrip(b"x")
        log.info("goes on")
    kept = (said.decode() + pipe.read()).splitlines()
    assert kept == [
        *(f"{number:09d}" for number in range(10)),
        "990 log lines were dropped: nobody read standard error",
        "goes on",
    ]


def test_the_end_waits_no_longer_than_it_may(pipe: Pipe) -> None:
    pipe.fill()
    with LogWriter(pipe.writer, close_seconds=0) as writer, logging_to(writer) as log:
        log.info("nobody will read this")
    log.info("nor this")
    assert "nor this" not in pipe.read()


def test_a_pipe_without_a_reader_ends_nothing(pipe: Pipe) -> None:
    os.close(pipe.reader)
    with LogWriter(pipe.writer) as writer, logging_to(writer) as log:
        log.error("nobody reads this")
    pipe.reader = os.dup(pipe.writer)
    assert sys.stderr is not None


def test_an_end_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    line = "y" * 1000
    said: list[str] = []
    with LogWriter(pipe.writer, close_seconds=60) as writer, logging_to(writer) as log:
        for _ in range(3 * PIPE_BYTES // 1000):
            log.info(line)
        received = 0
        while received < PIPE_BYTES:
            received += len(os.read(pipe.reader, 4096))
        reading = threading.Thread(target=lambda: said.append(_drain(pipe.reader)))
        reading.start()
    os.close(pipe.writer)
    pipe.writer = -1
    reading.join()
    assert received + len(said[0]) == 3 * PIPE_BYTES // 1000 * 1001


def _drain(descriptor: int) -> str:
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read().decode()


def test_what_is_no_text_is_written_all_the_same(pipe: Pipe) -> None:
    with LogWriter(pipe.writer) as writer:
        for message, argument in (("a name: %s", "\udcff"), ("broken %d", "x")):
            record = logging.LogRecord("test", logging.INFO, "", 0, message, (argument,), None)
            writer.handle(record)
    lines = pipe.read().splitlines()
    assert lines[0] == "a name: \\udcff"
    assert "--- Logging error ---" in lines
