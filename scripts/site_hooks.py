"""Hooks of MkDocs: API pages made from `__all__`, and only those results that a page links to."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_RESULT = re.compile(r"\]\((?:\.\./)*(results/[^)#\s]+)")
_API = re.compile(r"<!-- api: (\S+) -->")


def on_files(files: Any, config: Any) -> Any:
    """Remove the files of docs/results that no page shows or links to."""
    pages = [f for f in files.documentation_pages() if not f.src_uri.startswith("results/")]
    shown = {link for page in pages for link in _RESULT.findall(page.content_string)}
    for file in list(files):
        if file.src_uri.startswith("results/") and file.src_uri not in shown:
            files.remove(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the public names of MODULE in place of `<!-- api: MODULE -->`."""
    return _API.sub(lambda match: reference(match[1]), markdown)


def reference(module: str) -> str:
    """The docstring of a module, and a section for each function, class and value in `__all__`.

    Names that are public in another package too have their section there, and a link here.
    """
    own, links = [], []
    for name, path in public(module).items():
        other = ".".join(path.split(".")[:2])
        if other == module or name not in public(other):
            own.append(f"::: {path}\n")
        else:
            links.append(f"`{name}` is described at [{other}]({other.partition('.')[2]}.md).\n")
    about = f"::: {module}\n    options:\n      members: false\n      show_root_heading: false\n"
    return "\n".join([about, *links, *own])


@functools.cache
def public(module: str) -> dict[str, str]:
    """Where each public name of a module is defined, read from its source; submodules left out.

    A package may have a function and a file of one name, which tools that follow names confuse.
    """
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    own = (ast.FunctionDef, ast.ClassDef)
    defined = {node.name: f"{module}.{node.name}" for node in tree.body if isinstance(node, own)}
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    values = {name: f"{module}.{name}" for node in assigned for name in _names(node)}
    names = next(
        (ast.literal_eval(node.value) for node in assigned if _names(node) == ["__all__"]),
        [name for name in defined if not name.startswith("_")],
    )
    found |= defined | values
    return {name: found[name] for name in names if name in found and not _is_module(found[name])}


def _names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _is_module(path: str) -> bool:
    place = ROOT.joinpath(*path.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()
