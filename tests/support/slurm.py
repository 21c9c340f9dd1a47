"""A Slurm of one node in a directory of its own, made of what the distribution has."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

from tests.support.tools import needs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Slurm", "needs_slurm"]

needs_slurm = needs("munged", "slurmctld", "slurmd", "sbatch", "sinfo", "scontrol")

PATIENCE_S = 60.0

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={base}/munge.sock
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
Prolog={prolog}
PrologFlags=Alloc
SlurmdParameters=config_overrides
NodeName=node NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
"""
"""No cgroups: those of a container are not to be written to."""


class Slurm:
    """A cluster of one node; a context manager. Needs root, as slurmd does.

    Args:
        base: A directory that root alone may write to, short enough for a socket in it.
        prolog: Runs before each job's first task.
    """

    def __init__(self, base: Path, prolog: Path) -> None:
        self._base = base
        self._prolog = prolog
        self._life = contextlib.ExitStack()
        self._environment = {**os.environ, "SLURM_CONF": str(base / "slurm.conf")}

    def __enter__(self) -> Self:
        base = self._base
        for name in ("state", "spool"):
            (base / name).mkdir()
        key = base / "key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(1024))
        (base / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                ports=_free_ports(2),
                base=base,
                prolog=self._prolog,
            )
        )
        with self._life:
            self._start(
                *("munged", "--foreground", "--force"),
                *(f"--{name}={base}/munge.{name}" for name in ("pid-file", "log-file")),
                *(f"--key-file={key}", f"--seed-file={base}/seed", f"--socket={base}/munge.sock"),
            )
            self._start("slurmctld", "-D", "-c")
            self._start("slurmd", "-D", "-N", "node")
            self._wait(lambda: self.node_state() == "idle")
            self._life = self._life.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._life.close()

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands; whatever it exits with."""
        return subprocess.run(
            command,
            env={**self._environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def node_state(self) -> str:
        """What Slurm says of its node, like ``idle``."""
        return self.run("sinfo", "--noheader", "--format=%T").stdout.strip()

    def wait_done(self) -> None:
        """Until no job waits or runs, and the node is idle again."""
        self._wait(lambda: not self.run("squeue", "--noheader").stdout)
        self._wait(lambda: self.node_state() not in ("allocated", "mixed", "completing"))

    def log(self) -> str:
        """What its daemons have said."""
        return "".join(path.read_text() for path in self._base.glob("*.out"))

    def _start(self, *command: str) -> None:
        with (self._base / f"{command[0]}.out").open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._life.callback(_end, process)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.log()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
