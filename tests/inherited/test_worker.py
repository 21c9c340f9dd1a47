"""A worker's own process: what it lacks, and what nobody but torch wants to say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemons import EXPORT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemons import DaemonProcess
    from tests.support.hub import Repo, TestHub

WITHOUT_NUMPY = 'import sys; sys.modules["numpy"] = None'

USES = {
    "load": "craftcache.load(sys.argv[1])",
    "load_state_dict": "craftcache.load_state_dict(sys.argv[1], 'state_dict.bin')",
    "check": (
        "from pathlib import Path; from craftcache.exports import check_export; "
        "check_export(Path(sys.argv[1]))"
    ),
    "sample": "from craftcache.demo.sample import LanguageModel; LanguageModel()",
}


@pytest.mark.parametrize("use", USES)
def test_that_numpy_is_not_there_is_not_said(use: str) -> None:
    program = f"{WITHOUT_NUMPY}\nimport craftcache\n{USES[use]}"
    finished = subprocess.run(
        [sys.executable, "-c", program, str(EXPORT)], capture_output=True, text=True, check=True
    )
    assert "NumPy" not in finished.stderr


LOAD = """
import os, sys
{}
import craftcache
client = craftcache.Client(socket_dir=sys.argv[1], cache_dir=sys.argv[2], fallback=sys.argv[4])
export = client.load("org/model")
with open(sys.argv[3], "w") as file:
    file.write(f"{{export.served_by}} {{len(export.lm['best_state'])}}")
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_a_worker_without_standard_streams_loads(
    daemon: DaemonProcess, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    said = tmp_path / "said"
    program = LOAD.format(f"[os.close(number) for number in {closed}]")
    for served_by, fallback in (("daemon", "none"), ("cache", "cache")):
        subprocess.run(
            [
                *(sys.executable, "-c", program),
                *(str(daemon.socket_dir), str(daemon.cache_dir), str(said), fallback),
            ],
            check=True,
        )
        assert said.read_text().split()[0] == served_by
        if served_by == "daemon":
            daemon.terminate()


FETCH = """
import json, sys
{}
import craftcache
client = craftcache.Client(socket_dir=sys.argv[1], cache_dir=sys.argv[2])
export = client.load("org/model")
print(json.dumps([export.served_by, len(export.lm["best_state"])]))
"""

PATCHES = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.parametrize("patched", PATCHES)
def test_a_patched_worker_fetches_by_itself(
    base: Path,
    threaded_hub: TestHub,
    export_repo: Repo,
    patched: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if importlib.util.find_spec(patched) is None:
        pytest.skip(f"{patched} is not installed")
    monkeypatch.setenv("HF_ENDPOINT", threaded_hub.endpoint)
    finished = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", FETCH.format(PATCHES[patched])),
            *(str(base / "run"), str(base / "cache")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)[0] == "origin"


WARNED = """
import os, sys
from craftcache.logger import log
{}
log.warning("a warning")
"""


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("", "a warning\n"),
        ("os.close(2)", ""),
        ("sys.stderr = None", ""),
        ("import io; sys.stderr = io.StringIO()", ""),
    ],
    ids=["open", "closed", "none", "text"],
)
def test_a_warning_that_nobody_can_read_is_no_failure(stderr: str, said: str) -> None:
    """Python ends with status 120 if it cannot write what was written to standard error."""
    program = WARNED.format(stderr)
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stderr) == (0, said)
