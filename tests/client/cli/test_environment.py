"""``craftcache env`` and ``run``: what unmodified programs need."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from craftcache.audiocraft import STARTUP_DIR
from tests.support.command import Node, run
from tests.support.daemons import EXPORT_FILES


def test_env_survives_a_shell(tmp_path: Path) -> None:
    cache = tmp_path / "it's a $HOME of models"
    printed = run("--cache-dir", str(cache), "env").out
    script = f"eval {shlex.quote(printed)}; env -0"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    variables = dict(line.partition("=")[::2] for line in done.stdout.split("\0"))
    assert variables["AUDIOCRAFT_CACHE_DIR"] == variables["HF_HUB_CACHE"] == str(cache)
    assert variables["TORCH_HOME"] == str(cache / ".craftcache" / "torch")
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_env_online(tmp_path: Path) -> None:
    variables = run("--cache-dir", str(tmp_path), "env", "--json", "--online").json
    assert variables["HF_HUB_CACHE"] == str(tmp_path)
    assert "HF_HUB_OFFLINE" not in variables


def test_unmodified_huggingface_hub_finds_the_files_under_run(node: Node) -> None:
    script = (
        "import os, huggingface_hub as h; print(h.hf_hub_download('org/model', 'state_dict.bin', "
        "cache_dir=os.environ['AUDIOCRAFT_CACHE_DIR']))"
    )
    before = len(node.hub.requests)
    ran = node.run("run", "--", sys.executable, "-c", script)
    assert ran.code == 0, ran.err
    assert Path(ran.out.strip()).read_bytes() == EXPORT_FILES["state_dict.bin"].read_bytes()
    assert len(node.hub.requests) == before


def test_run_passes_on_options_and_the_exit_code() -> None:
    ran = run("run", "sh", "-c", "echo $0; exit 9", "--json")
    assert (ran.code, ran.out) == (9, "--json\n")
    absent = run("run", "--", "no-such-command")
    assert absent.code == 127
    assert absent.err == "craftcache: no-such-command: No such file or directory\n"


def test_what_leads_old_transformers_elsewhere_is_taken_back(tmp_path: Path) -> None:
    elsewhere = {"TRANSFORMERS_CACHE": str(tmp_path / "elsewhere")}
    assert "unset TRANSFORMERS_CACHE" in run("env", **elsewhere).out.splitlines()
    assert "unset" not in run("env").out
    script = "import os; print(os.environ.get('TRANSFORMERS_CACHE'))"
    assert run("run", "--", sys.executable, "-c", script, **elsewhere).out == "None\n"


def test_a_patched_program_finds_the_same_cache_and_daemon(tmp_path: Path) -> None:
    names = ("CRAFTCACHE_CACHE_DIR", "CRAFTCACHE_SOCKET_DIR", "PYTHONPATH")
    script = f"import json, os; print(json.dumps([os.environ[name] for name in {names}]))"
    place = ("--cache-dir", str(tmp_path / "cache"), "--socket-dir", str(tmp_path / "run"))
    patched = ("run", "--patch-audiocraft", "--", sys.executable, "-c", script)
    cache, socket, path = run(*place, *patched, PYTHONPATH="/theirs").json
    assert (cache, socket) == (str(tmp_path / "cache"), str(tmp_path / "run"))
    assert path == f"{STARTUP_DIR}:/theirs"


def test_an_audiocraft_that_is_not_known_is_not_patched(tmp_path: Path) -> None:
    (tmp_path / "audiocraft.py").write_text("__version__ = '0.1'\n")
    patched = ("run", "--patch-audiocraft", "--", sys.executable, "-c")
    ran = run(*patched, "import audiocraft", PYTHONPATH=str(tmp_path))
    assert ran.code == 1
    assert "UnknownAudioCraft: AudioCraft 0.1 is not known" in ran.err
    assert run(*patched, "import json", PYTHONPATH=str(tmp_path)).code == 0
