"""Frozen dataclasses that are pytrees: the one data structure of isojax."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

_C = TypeVar("_C")


def static(**kwargs: Any) -> Any:
    """A dataclass field that is metadata, part of the tree's structure: a new value recompiles.

    For every number that changes a shape, a dtype or a loop count. All other fields are leaves.
    """
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[_C]) -> type[_C]:
    """Make `cls` a frozen dataclass and register it as a pytree.

    Fields made by `static()` are metadata, the others children. Rebuilding from leaves does not
    run `__init__`, so a tree may hold anything a JAX transformation puts in it (tracers, `None`,
    axis numbers). Equality is identity: arrays have no single truth value.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    children = tuple(f.name for f in fields if not f.metadata.get("static"))
    meta = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(node, n) for n in children), tuple(getattr(node, n) for n in meta)

    def flatten_with_keys(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        keyed = tuple((jax.tree_util.GetAttrKey(n), getattr(node, n)) for n in children)
        return keyed, tuple(getattr(node, n) for n in meta)

    def unflatten(aux: tuple[Any, ...], leaves: Any) -> Any:
        node = object.__new__(cls)
        for name, value in zip(meta, aux, strict=True):
            object.__setattr__(node, name, value)
        for name, value in zip(children, leaves, strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
