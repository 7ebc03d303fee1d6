"""The hash of the user's code that measured a row: rows of changed code are stale."""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import json
import re
import sys
import sysconfig
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import isojax

_STUDIES = Path(isojax.__path__[0]).parent / "experiments"  # of a clone
_KNOWN = tuple(  # code of which rows hold the version or commit
    Path(path).resolve()
    for path in (
        *isojax.__path__, _STUDIES, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))
    )
)  # fmt: skip
_MEMBER = re.compile(r"([\w.]+):(\w+)")


def source_of(*things: Any) -> str:
    """Hash of the user's source code used by `things`, 12 digits; empty where there is none.

    It covers the functions and classes themselves and, recursively, the user's functions and
    classes that they name (in the same file, imported or closed over), and the numbers and strings
    of their modules that these use. A string, recipe or plan refers to the functions that it names
    as `package.module:name`, also within a dict, list, tuple or set. Code of isojax, its studies,
    Python or installed packages is left out. Comments count.

    Args:
        things: functions, classes, strings, recipes, plans, and collections of them; anything else
            is ignored.
    """
    walk = _Walk()
    for thing in things:
        walk.look(thing)
    text = json.dumps(sorted(walk.found))
    return hashlib.sha256(text.encode()).hexdigest()[:12] if walk.found else ""


class _Walk:
    """The collected code of the user: pairs of a name and its source or value."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()
        self.seen: dict[int, Any] = {}

    def look(self, thing: Any, names: Iterable[str] = ()) -> None:
        """Add `thing` and everything it uses; of a module, the members in `names`."""
        if isinstance(thing, str):
            for module, name in _MEMBER.findall(thing):
                self.look(getattr(sys.modules.get(module), name, None))
        elif isinstance(thing, types.ModuleType):
            for name in names if _own(thing) else ():
                self.look(vars(thing).get(name), names)
        elif isinstance(thing, functools.partial):
            for part in (thing.func, *thing.args, *thing.keywords.values()):
                self.look(part)
        elif isinstance(thing, dict | list | tuple | set | frozenset):
            if id(thing) not in self.seen:
                self.seen[id(thing)] = thing
                parts = itertools.chain(thing, thing.values()) if isinstance(thing, dict) else thing
                for part in parts:
                    if not isinstance(part, int | float):
                        self.look(part)
        elif isinstance(thing, types.MethodType):
            self.look(thing.__func__)
            self.look(type(thing.__self__))
        elif hasattr(thing, "__wrapped__"):
            self.look(inspect.unwrap(thing))
        elif isinstance(thing, type | types.FunctionType) and id(thing) not in self.seen:
            self.seen[id(thing)] = thing
            own = _own(thing)
            if own:
                self._add(thing.__qualname__, _text(thing))
            if isinstance(thing, types.FunctionType):
                self._function(thing, own)
            elif own:
                for part in (*thing.__bases__, *vars(thing).values()):
                    self.look(getattr(part, "__func__", None) or getattr(part, "fget", part))
        elif hasattr(type(thing), "parse") and type(thing).__module__.startswith("isojax."):
            self.look(str(thing))  # a recipe or a plan

    def _function(self, function: types.FunctionType, own: bool) -> None:
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            with contextlib.suppress(ValueError):  # a cell that is not yet filled
                self._closed(name, cell.cell_contents, own)
        codes = [function.__code__] if own else []
        for code in codes:  # grows by nested code objects
            codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
            for name in code.co_names:
                value = function.__globals__.get(name)
                self.look(value, code.co_names)
                if isinstance(value, int | float | str | tuple | list | dict):
                    self._add(name, _shown(value))
            for step in dis.get_instructions(code):
                if step.opname == "IMPORT_NAME" and _own_module(step.argval):
                    self.look(importlib.import_module(step.argval), code.co_names)

    def _closed(self, name: str, value: Any, own: bool) -> None:
        self.look(value)
        if own and isinstance(value, int | float | str):
            self._add(name, repr(value))

    def _add(self, name: str, text: str) -> None:
        self.found |= {(name, text)} if text else set()


def _own(thing: Any) -> bool:
    """Whether a module, class or function is in one of the user's files."""
    module = isinstance(thing, types.ModuleType)
    name = str(thing.__name__ if module else getattr(thing, "__module__", ""))
    return _own_file(getattr(sys.modules.get(name), "__file__", None))


def _own_module(name: str) -> bool:
    """Whether a module that need not be imported yet is the user's."""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        return False
    return spec is not None and _own_file(spec.origin)


def _own_file(file: str | None) -> bool:
    return file is not None and not any(map(Path(file).resolve().is_relative_to, _KNOWN))


def _text(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # typed at a prompt, or made by a decorator
        return ""


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return ""
