"""Members by name: one registry per family, and the notation `name:value:key=value`.

A family is a set of functions that share their first arguments, such as `(key, samples)`. The
other arguments in a signature are the member's own, which the notation sets: in order of the
signature, or by name. `package.module:name` is a function of that module.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax

from isojax._core.checks import nearest

_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_KINDS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: {"true": True, "false": False}[text],
    "int": int,
    "float": float,
    "str": str,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A function of a family.

    Attributes:
        name: in the notation; `package.module:name` for one from outside.
        make: the function.
        arguments: its own arguments, by name.
        facts: what its family records about it.
    """

    name: str
    make: Callable[..., Any]
    arguments: dict[str, inspect.Parameter]
    facts: dict[str, Any]

    def stage(self, *values: Any, **named: Any) -> Stage:
        """The member with some of its arguments set; those equal to their default are dropped.

        Raises:
            ValueError: there are too many values, an unknown argument, or a missing one.
        """
        if len(values) > len(self.arguments):
            raise ValueError(f"{self.name} takes {self._allowed()}; got {len(values)} values.")
        given = dict(zip(self.arguments, values, strict=False))
        for name, value in named.items():
            if name not in self.arguments or name in given:
                raise ValueError(f"{self.name} takes {self._allowed()}; got {name}={value}.")
            given[name] = value
        for name, value in given.items():
            if type(value) is int and self._kind(name) == "float":
                given[name] = float(value)
        kept = []
        for name, argument in self.arguments.items():
            if name in given and not _same(given[name], argument.default):
                kept.append((name, given[name]))
            elif name not in given and argument.default is argument.empty:
                raise ValueError(f"{self.name} takes {self._allowed()}; {name} is missing.")
        return Stage(self, tuple(kept))

    def read(self, fields: Iterable[str]) -> Stage:
        """`stage` of values written in the notation."""
        values, named = [], {}
        for field in fields:
            name, equals, text = field.partition("=")
            if equals:
                named[name] = self._value(name, text)
            elif named:
                first = next(iter(named))
                raise ValueError(
                    f"{self.name}: values must come before {first}=..., got {field!r}."
                )
            else:
                place = len(values)
                at = list(self.arguments)[place] if place < len(self.arguments) else ""
                values.append(self._value(at, field) if at else field)
        return self.stage(*values, **named)

    def traced(self, name: str) -> bool:
        """Whether an argument may be traced: its annotation allows an array."""
        return "Array" in str(self.arguments[name].annotation)

    def _value(self, name: str, text: str) -> Any:
        if name not in self.arguments:
            raise ValueError(f"{self.name} takes {self._allowed()}; got {name}={text}.")
        kind = self._kind(name)
        try:
            return _KINDS.get(kind, str)(text)
        except (KeyError, ValueError):
            raise ValueError(f"{self.name}: {name} must be of type {kind}, got {text!r}.") from None

    def _kind(self, name: str) -> str:
        """The type of an argument: the first word of its annotation, or the type of its default."""
        argument = self.arguments[name]
        if argument.annotation is argument.empty:
            return type(argument.default).__name__
        kind = argument.annotation
        return (kind if isinstance(kind, str) else inspect.formatannotation(kind)).partition(" ")[0]

    def _allowed(self) -> str:
        shown = [
            name if a.default is a.empty else f"{name}={a.default}"
            for name, a in self.arguments.items()
        ]
        return f"the arguments {', '.join(shown)}" if shown else "no arguments"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A member and the arguments that differ from its defaults; prints in the notation.

    A pytree: arguments that may be traced are leaves, so that they can be swept by `vmap`.
    """

    member: Member
    given: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The name of the member."""
        return self.member.name

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments, defaults included."""
        defaults = {name: a.default for name, a in self.member.arguments.items()}
        return defaults | dict(self.given)

    def __call__(self, *args: Any) -> Any:
        """Call the function with the arguments that its family supplies.

        Raises:
            ValueError: a function from outside raises an exception.
        """
        try:
            return self.member.make(*args, **dict(self.given))
        except Exception as error:
            if ":" not in self.name:
                raise
            first = str(error).partition("\n")[0]
            raise ValueError(f"{self.name} raised {type(error).__name__}: {first}") from error

    def __str__(self) -> str:
        order, shown, positional = list(self.member.arguments), [self.name], True
        for place, (name, value) in enumerate(self.given):
            positional = positional and order[place] == name
            text = str(value).lower() if isinstance(value, bool) else str(value)
            shown.append(text if positional else f"{name}={text}")
        return ":".join(shown)


def _flatten(stage: Stage) -> tuple[Any, Any]:
    leaves = tuple(v for n, v in stage.given if stage.member.traced(n))
    fixed = tuple((n, None if stage.member.traced(n) else v) for n, v in stage.given)
    return leaves, (stage.member, fixed)


def _unflatten(fixed: Any, leaves: Iterable[Any]) -> Stage:
    member, given = fixed
    rest = iter(leaves)
    return Stage(member, tuple((n, next(rest) if member.traced(n) else v) for n, v in given))


jax.tree_util.register_pytree_node(Stage, _flatten, _unflatten)


class Family:
    """Members of one kind.

    Attributes:
        kind: what messages call them.
        shared: the number of first arguments that the family supplies.
        members: by name.
    """

    def __init__(self, kind: str, shared: int) -> None:
        self.kind, self.shared = kind, shared
        self.members: dict[str, Member] = {}
        self._outside = functools.cache(self._load)

    def member(self, name: str, **facts: Any) -> Callable[[Any], Any]:
        """A decorator that registers a function and returns it unchanged."""

        def register(make: Any) -> Any:
            if name in self.members:
                raise ValueError(f"{self.kind}: there is a member {name} already.")
            self.members[name] = self._made(name, make, facts)
            return make

        return register

    def parse(self, text: str) -> Stage:
        """The stage that `text` writes.

        Raises:
            ValueError: there is no such member (the message names the nearest), or an argument is
                not allowed.
        """
        name, *fields = text.strip().split(":")
        if name in self.members:
            return self.members[name].read(fields)
        outside = bool(_NAME.fullmatch(name) and fields and fields[0].isidentifier())
        if outside and _is_module(name):
            return self._outside(name, fields[0]).read(fields[1:])
        near = nearest(name, self.members)
        found = f", and there is no module {name}" if outside else ""
        if self is COORDINATES and name in LEVELS.members:
            found = f", whose place is after a slash, as in hadamard/{name}"
        more = [] if len(near) == len(self.members) else ["..."]
        raise ValueError(
            f"{self.kind} must be {'one' if near else 'some'} of {', '.join([*near, *more])}, or "
            f"package.module:name for your own; got {text!r}{found}."
        )

    def _load(self, module: str, name: str) -> Member:
        try:
            found = importlib.import_module(module)
        except Exception as error:
            raise ValueError(
                f"{self.kind}: module {module} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not hasattr(found, name):
            raise ValueError(f"{self.kind}: module {module} has no {name}.")
        make = getattr(found, name)
        if not callable(make):
            raise ValueError(f"{self.kind} {module}:{name} must be a function, got {make!r}.")
        return self._made(f"{module}:{name}", make, {})

    def _made(self, name: str, make: Any, facts: dict[str, Any]) -> Member:
        every = list(inspect.signature(make).parameters.items())[self.shared :]
        own = {n: a for n, a in every if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)}
        return Member(name, make, own, facts)


def _is_module(name: str) -> bool:
    if name in sys.modules:  # `__main__` too, a user's script
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _same(value: Any, default: Any) -> bool:
    """Whether a value is the default; arrays and tracers are not."""
    if value is None:
        return default is None
    return (
        isinstance(value, str | int | float) and type(value) is type(default) and value == default
    )


COORDINATES = Family("coordinates", 2)
"""`(key, samples) -> Transform`. Facts: `fitted`, attributes of samples it needs; `random`, whether
the key counts; `block`, the length of its blocks, or the argument that gives it; `diagonal`,
whether it returns a `Diagonal`."""
LEVELS = Family("levels", 2)
"""`(samples, bits) -> Quantizer`. Facts: `fitted`; `bits`, the allowed ones where these are fixed,
empty where it takes none; `exact`, whether it leaves vectors unchanged."""
WRAPPERS = Family("a wrapper of levels", 1)
"""`(quantizer) -> Quantizer`."""
ROUNDINGS = Family("rounding", 3)
"""`(w [i, o], hessian [i, i], quantizer) -> Codes of w.T`. Facts: `fitted`."""
