"""What holds of the code as a whole."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import craftcache
import craftcached

ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"

ROOTS = [Path(package.__path__[0]) for package in (craftcache, craftcached)]


def test_a_public_class_is_what_its_name_says_wherever_it_is_read() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in (path for root in ROOTS for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(f"{path}:{node.lineno}")
    assert len(found) > 100
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


COUNTED = re.compile(
    r"[ ](?:more[ ])?(?:bytes|connections|entries|failures|files|generations|hits|instances|leases|"
    r"models|processes|ranges|requests|sources|tensors|tries|warms|watches|workers)\b"
)
"""What stands behind a number in a text for people; where it may be 1, counted says it."""


def test_people_read_no_one_things() -> None:
    found = []
    for path in (path for root in ROOTS for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                for value, text in pairwise(node.values):
                    said = str(text.value) if isinstance(text, ast.Constant) else ""
                    if is_number(value) and COUNTED.match(said):
                        found.append(f"{path}:{text.lineno}: {ast.unparse(value)}{said}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts = re.split(r"%(?:\(\w+\))?d", node.value)[1:]
                found += [
                    f"{path}:{node.lineno}: %d{text}" for text in texts if COUNTED.match(text)
                ]
    assert found == []


def is_number(value: ast.expr) -> bool:
    """Whether a part of an f-string is a number that is no constant and not formatted already."""
    if not isinstance(value, ast.FormattedValue) or value.conversion != -1:
        return False
    return not isinstance(value.value, ast.Call) and not ast.unparse(value.value).isupper()


def names_in(tree: ast.AST) -> set[str]:
    """Names that a class has: its methods, and the attributes that its code sets or declares."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case (
                ast.Attribute(value=ast.Name(id="self"), attr=name)
                | ast.AnnAssign(target=ast.Name(id=name))
            ):
                found.add(name)
    return found


def test_what_the_architecture_names_exists() -> None:
    members: defaultdict[str, set[str]] = defaultdict(set)
    for path in (path for root in ROOTS for path in root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                members[node.name] |= names_in(node)
    # Class.member in prose, tables and drawings; file.md and e.g. are none.
    named = set(re.findall(r"\b([A-Z][a-z]\w*)\.(_?[a-z]\w*[a-z])\b", ARCHITECTURE.read_text()))
    named = {(owner, member) for owner, member in named if member not in {"md", "py"}}
    assert len(named) > 30
    assert {
        f"{owner}.{member}" for owner, member in named if member not in members.get(owner, set())
    } == set()
