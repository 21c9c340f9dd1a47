"""What Python imports when it starts with this directory on PYTHONPATH.

As soon as the program has imported AudioCraft, the patch is installed. The ``sitecustomize`` that
this one stands in front of is run as if this one were not there.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class InstallAfterImport:
    """A finder that finds AudioCraft as others do, once, and has the patch installed after it."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if name != "audiocraft":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_install(module: ModuleType) -> None:
                execute(module)
                from craftcache.audiocraft import install

                install()

            spec.loader.exec_module = execute_and_install  # type: ignore[method-assign]
        return spec


def run_the_next() -> None:
    """Run the sitecustomize that Python would have found but for this directory."""
    here = os.path.dirname(__file__)
    sys.path[:] = [path for path in sys.path if path != here]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


sys.meta_path.insert(0, InstallAfterImport())
run_the_next()
