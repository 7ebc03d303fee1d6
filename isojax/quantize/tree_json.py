"""Pytrees as JSON and named arrays, without pickle.

| node | JSON |
|---|---|
| None, bool, int, float, str | itself |
| array | `{"array": NAME}`, and `"dtype"` where a file holds its bytes as integers |
| dict, tuple, list | `{"dict": {...}}`, `{"tuple": [...]}`, `{"list": [...]}` |
| frozen dataclass | `{"class": "package.module:Name", "fields": {...}}` |
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SCALARS = (type(None), bool, int, float, str)
_INTEGERS = {1: np.uint8, 2: np.uint16}  # stored dtypes of floats that NumPy lacks


def to_json(tree: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A tree as JSON, and its arrays by their paths, such as `weights/q_proj/0/codes/data`.

    Raises:
        ValueError: the tree holds a node of a kind that is not in the table.
    """
    arrays: dict[str, np.ndarray] = {}

    def node(value: Any, path: tuple[str, ...]) -> Any:
        def each(items: Any) -> dict[str, Any]:
            return {name: node(item, (*path, name)) for name, item in items}

        if isinstance(value, _SCALARS):
            return value
        if isinstance(value, dict):
            return {"dict": each(value.items())}
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: list(each((str(i), v) for i, v in enumerate(value)).values())}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = (f.name for f in dataclasses.fields(value))
            kind = f"{type(value).__module__}:{type(value).__qualname__}"
            return {"class": kind, "fields": each((n, getattr(value, n)) for n in names)}
        name = "/".join(path)
        plain = isinstance(value, jax.Array) and not jnp.issubdtype(
            value.dtype, jax.dtypes.extended
        )
        if not plain and not isinstance(value, np.ndarray | np.generic):
            raise ValueError(
                f"{name} must be an array, number, string, dataclass or container of these; "
                f"got {type(value).__name__}."
            )
        array = np.asarray(value)
        found = {"array": name}
        if array.dtype.isbuiltin != 1:
            found["dtype"] = array.dtype.name
            array = array.view(_INTEGERS[array.dtype.itemsize])
        arrays[name] = array
        return found

    return node(tree, ()), arrays


def from_json(node: Any, read: Callable[[str], np.ndarray]) -> Any:
    """The inverse of `to_json`; `read` returns an array by its name.

    Classes of other packages are found only if their module is imported already, so that a file
    cannot choose which code runs.

    Raises:
        ValueError: a node is not in the table, or a class is unknown or has other fields.
    """
    if isinstance(node, _SCALARS):
        return node
    match node:
        case {"array": str(name), **rest}:
            array = read(name)
            return jnp.asarray(array.view(jnp.dtype(rest["dtype"])) if rest else array)
        case {"dict": dict(items)}:
            return {name: from_json(item, read) for name, item in items.items()}
        case {"tuple": list(items)}:
            return tuple(from_json(item, read) for item in items)
        case {"list": list(items)}:
            return [from_json(item, read) for item in items]
        case {"class": str(name), "fields": dict(fields)}:
            return _instance(name, {n: from_json(item, read) for n, item in fields.items()})
    raise ValueError(f"a node must be an array, a container or a class, got {str(node)[:80]}.")


def _instance(name: str, values: dict[str, Any]) -> Any:
    """A dataclass with these fields; as with other pytrees, `__init__` is not run."""
    cls = _class(name)
    own = [f.name for f in dataclasses.fields(cls)]
    if set(own) != set(values):
        raise ValueError(f"{name} must have the fields {', '.join(own)}; got {', '.join(values)}.")
    made = object.__new__(cls)
    for field in own:
        object.__setattr__(made, field, values[field])
    return made


def _class(name: str) -> Any:
    module, _, rest = name.partition(":")
    if module.partition(".")[0] == "isojax":
        try:
            importlib.import_module(module)
        except ImportError:
            raise ValueError(f"class must be one of isojax, got {name}.") from None
    elif module not in sys.modules:
        raise ValueError(f"class {name} must be known: import {module} first.")
    cls = getattr(sys.modules[module], rest, None)
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise ValueError(f"class must be a dataclass, got {name}.")
    return cls
