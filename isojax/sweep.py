"""Sweeps: a static grid x a traced grid x seeds over one plain function.

    def trial(key, *, bits, clip):          # -> dict of scalars
        ...
    for result in sweep(key, trial, seeds=24, static={"bits": [2, 3, 4]},
                        traced={"clip": [0.8, 0.9, 1.0]}):
        print(result.config, result.seed, result.metrics)

Values that fix a shape go into `static`, at one compilation per point; numbers go into `traced`
and are batched by `vmap`, as are the seeds, in chunks that fit a memory budget.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsInt

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from isojax._core.checks import as_scalar, check_positive

Config = dict[str, Any]
Grid = Mapping[str, Any]  # name -> list, tuple or array of values
_FIXED = (  # raised by JAX where the structure of a program depends on a traced number
    jax.errors.ConcretizationTypeError, jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError,
)  # fmt: skip


class Result(NamedTuple):
    """The result of one trial.

    Attributes:
        config: its values of the static, traced and inner names.
        seed: number of the seed; the trial's key is `fold_in(key, seed)`, so more seeds keep the
            old.
        metrics: name -> value.
    """

    config: Config
    seed: int
    metrics: dict[str, float]


def sweep(
    key: jax.Array,
    trial: Callable[..., Mapping[Any, Any]],
    *,
    seeds: SupportsInt,
    static: Grid | None = None,
    traced: Grid | None = None,
    inner: Grid | None = None,
    memory: int = 2**31,
    done: Callable[[Config, int, Sequence[str]], bool] = lambda config, seed, metrics: False,
    compiled: Callable[[Config], None] = lambda config: None,
    progress: bool = True,
    title: str = "sweep",
) -> Iterator[Result]:
    """Run `trial(key, **static, **traced)` over a grid and seeds; yield results as they come.

    Arrays that the trial closes over become arguments of the compiled program, not constants in
    it. All points of the traced grid share a key, so comparisons between them are paired.

    Args:
        key: root key.
        trial: returns a dict of scalars; with `inner`, a dict of such dicts (see there).
        seeds: number of seeds, 0 .. seeds - 1.
        static: name -> values that fix a shape, a dtype or a loop count; one compilation per point.
        traced: name -> numbers; all points in one program.
        inner: one name -> values that the trial iterates over itself, to share work between them
            (the same rotation for several quantizers): it returns {value: dict of scalars}.
        memory: budget in bytes for one program's temporaries and outputs; fewer seeds go into a
            program until it fits. A single seed always runs.
        done: `(config, seed, metric names) -> bool`; a seed is skipped if it returns True for
            every traced and inner point.
        compiled: called with the static point at every compilation: one per point, plus one
            where the first chunk size did not fit the budget.
        progress: show a progress bar.
        title: of the progress bar.

    Raises:
        ValueError: `seeds` is no positive number, `inner` has several names, a name has no list of
            values or is traced but determines the structure of the program, or the trial does not
            return scalars.
    """
    count = check_positive("seeds", seeds)
    if len(inner or {}) > 1:
        raise ValueError(f"inner must have one name, got {', '.join(inner or {})}.")
    points, numbers, inners = grid(static or {}), grid(traced or {}), grid(inner or {})
    # vmap needs the index where there are no numbers
    lanes = ({n: _numbers(n, numbers) for n in traced or {}}, jnp.arange(len(numbers)))
    bytes_a_seed = 0.0
    with progress_bar(not progress, TextColumn("{task.fields[n]}")) as bar:
        task, compiles = bar.add_task(title, total=len(points) * count, n=""), 0
        for point in points:
            bar.update(task, description=" ".join([title, *map(str, point.values())]))

            def one(key: jax.Array, lane: Any, point: Config = point) -> Any:
                return trial(key, **point, **lane[0])

            batched = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))
            names = _metric_names(one, key, lanes, inner)
            configs = [point | number | label for number in numbers for label in inners]
            todo = [s for s in range(count) if not all(done(c, s, names) for c in configs)]
            bar.update(task, advance=count - len(todo))
            if not todo:
                continue
            chunk = _fit(len(todo), memory, bytes_a_seed)
            while True:
                program, needed = _compile(batched, _keys(key, todo[:1] * chunk), lanes)
                compiles += 1
                compiled(point)
                bar.update(task, n=f"{compiles} compiled")
                bytes_a_seed = needed / chunk
                if needed <= memory or chunk == 1:
                    break
                chunk = min(chunk - 1, _fit(len(todo), memory, bytes_a_seed))
            for start in range(0, len(todo), chunk):
                now = todo[start : start + chunk]
                padded = now + now[-1:] * (chunk - len(now))
                values = jax.tree.map(np.asarray, program(_keys(key, padded), lanes))
                for i, seed in enumerate(now):
                    for j, number in enumerate(numbers):
                        for label in inners:
                            found = values[next(iter(label.values()))] if inner else values
                            metrics = {n: float(found[n][i, j]) for n in names}
                            yield Result(point | number | label, seed, metrics)
                bar.update(task, advance=len(now))
        bar.update(task, description=title)


def grid(axes: Grid) -> list[Config]:
    """All combinations, the last name varying fastest: [{}] for no axes.

    Raises:
        ValueError: the values of a name are no list, tuple or array, or there are none.
    """
    for name, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence) and np.ndim(values) != 1:
            raise ValueError(f"{name} must have a list of values, got {values!r}.")
        if not len(values):
            raise ValueError(f"{name} must have at least one value, got none.")
    each = [map(as_scalar, values) for values in axes.values()]
    return [dict(zip(axes, v, strict=True)) for v in itertools.product(*each)]


def progress_bar(disable: bool, *columns: ProgressColumn) -> Progress:
    """A progress bar on stderr that shows the time, and `columns`."""
    shown = (*Progress.get_default_columns(), TimeElapsedColumn(), *columns)
    return Progress(*shown, console=Console(stderr=True), disable=disable)


def _numbers(name: str, points: Sequence[Config]) -> jax.Array:
    values = [point[name] for point in points]
    for value in values:
        if not isinstance(value, int | float):
            raise ValueError(
                f"traced: {name} must be numbers, got {value!r}; give other values as static."
            )
    return jnp.asarray(values)


def _fit(seeds: int, memory: int, bytes_a_seed: float) -> int:
    """Seeds per program, in chunks of about equal length that fit."""
    most = seeds if not bytes_a_seed else max(1, min(seeds, int(memory // bytes_a_seed)))
    chunks = -(-seeds // most)
    return -(-seeds // chunks)


def _keys(key: jax.Array, seeds: Sequence[int]) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(seeds))


def _metric_names(
    one: Callable[..., Any], key: jax.Array, lanes: Any, inner: Grid | None
) -> list[str]:
    """Names of the metrics of a trial, which is traced once.

    Raises:
        ValueError: it returns no scalars, or a traced name cannot be traced; the message names it.
    """
    names: list[str] = []
    numbers, index = jax.tree.map(lambda a: a[0], lanes)

    def traced(key: jax.Array, some: Any, others: Any) -> None:
        names[:] = _checked(one(key, (some | others, index)), inner)

    try:
        jax.eval_shape(traced, key, numbers, {})
    except _FIXED as error:
        for name, value in numbers.items():
            others = {n: v.item() for n, v in numbers.items() if n != name}
            try:
                jax.eval_shape(functools.partial(traced, others=others), key, {name: value})
            except _FIXED:
                raise ValueError(
                    f"traced: {name} fixes a shape, a loop count or a choice of the trial; give it "
                    "as static."
                ) from error
        raise
    return names


def _checked(found: Any, inner: Grid | None) -> list[str]:
    if inner and isinstance(found, Mapping) and set(found) != set(next(iter(inner.values()))):
        raise ValueError(f"inner={dict(inner)}, but the trial returned {list(found)}.")
    tables = list(found.values()) if inner and isinstance(found, Mapping) else [found]
    if not all(isinstance(table, Mapping) and table for table in tables):
        what = "a dict of dicts of scalars" if inner else "a dict of scalars"
        raise ValueError(f"trial must return {what}, got {found!r}.")
    for table in tables:
        for name, value in table.items():
            if not isinstance(value, int | float) and getattr(value, "shape", None) != ():
                raise ValueError(f"trial must return scalars, got {name} = {value}.")
    return list(tables[0])


def _compile(call: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], int]:
    """Compile `call` with closed-over arrays as arguments; return it and the bytes it needs."""
    closed, shape = jax.make_jaxpr(call, return_shape=True)(*args)
    tree = jax.tree.structure(shape)

    def run(consts: Any, *args: Any) -> Any:
        flat = jax.core.eval_jaxpr(closed.jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(tree, flat)

    program = jax.jit(run).lower(closed.consts, *args).compile()
    stats = program.memory_analysis()
    needed = stats.temp_size_in_bytes + stats.output_size_in_bytes if stats else 0
    return lambda *args: program(closed.consts, *args), needed
