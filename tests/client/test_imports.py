"""What importing costs, and that the modules' public names are real."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import craftcache

HEAVY = {"aiohttp", "craftcached", "httpx", "huggingface_hub", "rich", "torch"}

MODULES = [
    module.name
    for module in pkgutil.walk_packages(craftcache.__path__, "craftcache.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize(
    "program",
    [
        "import craftcache",
        "import craftcache; craftcache.Client(); craftcache.AsyncClient()",
        "import craftcache; craftcache.Client(socket_dir='/none').models()",
        "from craftcache import *",
        "import craftcache.audiocraft; craftcache.audiocraft.uninstall()",
    ],
)
def test_what_needs_no_tensors_imports_no_heavy_library(program: str) -> None:
    listed = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules, sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not HEAVY & set(listed.stdout.splitlines())


@pytest.mark.parametrize("name", ["craftcache", *MODULES])
def test_every_public_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    for public in exported:
        assert hasattr(module, public)


def test_no_public_name_is_hidden_by_a_module_of_the_same_name() -> None:
    program = (
        f"import importlib, types, craftcache\n"
        f"for name in {MODULES!r}: importlib.import_module(name)\n"
        "names = [n for n in craftcache.__all__ if "
        "isinstance(getattr(craftcache, n), types.ModuleType)]\n"
        "print(names)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = craftcache.lode
    assert set(craftcache.__all__) <= set(dir(craftcache))
