"""What holds of the code as a whole."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import craftcache
import craftcached

ROOTS = [Path(package.__path__[0]) for package in (craftcache, craftcached)]


def test_a_public_class_is_what_its_name_says_wherever_it_is_read() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in (path for root in ROOTS for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(f"{path}:{node.lineno}")
    assert len(found) > 100
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
