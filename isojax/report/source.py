"""The user's own code behind a row, as a hash: rows of code that has changed since are stale."""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import importlib
import importlib.util
import inspect
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
_KNOWN = tuple(  # what rows know the version or commit of
    Path(path).resolve()
    for path in (
        *isojax.__path__, _STUDIES, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))
    )
)  # fmt: skip
_MEMBER = re.compile(r"([\w.]+):(\w+)")


def source_of(*things: Any) -> str:
    """Hash of the user's own source behind `things`, 12 digits; empty where there is none.

    It is that of the functions and classes themselves and, in turn, of those of the user's own that
    they name: in the same file, imported, closed over; and of the numbers and texts that these
    find in their module. A text stands for the functions that it names as `package.module:name`.
    What belongs to isojax, its studies, Python or an installed package is left out. Comments count.

    Args:
        things: functions, classes, texts; anything else is passed over.
    """
    walk = _Walk()
    for thing in things:
        walk.look(thing)
    text = json.dumps(sorted(walk.found))
    return hashlib.sha256(text.encode()).hexdigest()[:12] if walk.found else ""


class _Walk:
    """What has been found of the user's own: pairs of a name and its source or value."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()
        self.seen: dict[int, Any] = {}

    def look(self, thing: Any, names: Iterable[str] = ()) -> None:
        """Add what `thing` is, and what it uses; of a module, what has one of `names`."""
        if isinstance(thing, str):
            for module, name in _MEMBER.findall(thing):
                self.look(getattr(sys.modules.get(module), name, None))
        elif isinstance(thing, types.ModuleType):
            for name in names if _own(thing) else ():
                self.look(vars(thing).get(name), names)
        elif isinstance(thing, functools.partial):
            for part in (thing.func, *thing.args, *thing.keywords.values()):
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

    def _function(self, function: types.FunctionType, own: bool) -> None:
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            with contextlib.suppress(ValueError):  # a cell that is not yet filled
                self._closed(name, cell.cell_contents, own)
        codes = [function.__code__] if own else []
        for code in codes:  # grows by those within
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
    """Whether a module, class or function is in a file of the user's."""
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
