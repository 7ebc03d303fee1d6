"""Public names that nothing but tests would use."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs" / "papers").glob("*.md"),
]
USERS = [
    file for room in ("isojax", "experiments", "scripts") for file in (ROOT / room).rglob("*.py")
]


def used(tree):
    """Names that a file reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def public(tree):
    """Functions and classes of a file, and methods; members are registered by their decorator."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
            if isinstance(node, ast.ClassDef):
                own = (n.name for n in node.body if isinstance(n, ast.FunctionDef))
                yield from (name for name in own if not name.startswith("_"))


def test_every_public_name_is_used_or_explained():
    trees = {file: ast.parse(file.read_text()) for file in USERS}
    read = {name for tree in trees.values() for name in used(tree)}
    words = set(
        "".join(c if c.isalnum() or c == "_" else " " for p in PAGES for c in p.read_text()).split()
    )
    named = {
        name for file, tree in trees.items() if "isojax" in file.parts for name in public(tree)
    }
    assert len(named) > 300 and named - read - words == set()
