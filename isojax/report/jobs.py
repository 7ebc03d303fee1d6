"""Jobs: a study declares the rows it will record, with units; missing ones are computed.

    units = {"nll": "nats per token"}

    def score(entries):                     # gets the entries that the record lacks
        for entry in entries:
            yield {"nll": nll_of(texts[entry.config["window"]])}

    windows = [Entry({"model": "tiny", "window": i}, None, units) for i in range(8)]
    fill(study, [Job("windows of tiny", windows, score)])

`Job.one` is the short form for one configuration, `Job.sweep` for a sweep.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsInt

import jax

from isojax._core.checks import check_positive
from isojax.report.rows import Units, Values, identity
from isojax.report.source import source_of
from isojax.report.study import Study
from isojax.sweep import Grid, grid, progress_bar, sweep


class Entry(NamedTuple):
    """Rows that belong together: those of one configuration and seed.

    Attributes:
        config: flat dict of strings, numbers and booleans: what is measured.
        seed: number of the seed, or None where nothing is random.
        units: metric -> unit, of all metrics that are recorded.
    """

    config: Mapping[str, Any]
    seed: int | None
    units: Units


@dataclasses.dataclass(frozen=True)
class Job:
    """Entries that are computed together.

    Attributes:
        title: shown while it runs, and named in errors.
        entries: the rows it records.
        measure: takes the entries that lack a row and yields the values of each, in their order:
            metric -> number. Yielded values are recorded at once.
    """

    title: str
    entries: Sequence[Entry]
    measure: Callable[[Sequence[Entry]], Iterable[Values]]

    @classmethod
    def one(
        cls,
        title: str,
        config: Mapping[str, Any],
        units: Units,
        measure: Callable[[], Values],
        seed: int | None = None,
    ) -> Job:
        """Job of a single entry, whose values `measure()` returns."""
        return cls(title, [Entry(config, seed, units)], lambda _: [measure()])

    @classmethod
    def sweep(
        cls,
        title: str,
        config: Callable[[dict[str, Any]], Mapping[str, Any]],
        units: Units,
        key: jax.Array,
        trial: Callable[..., Mapping[Any, Any]],
        *,
        seeds: SupportsInt | None,
        static: Grid | None = None,
        traced: Grid | None = None,
        inner: Grid | None = None,
    ) -> Job:
        """Job of all points and seeds of `isojax.sweep.sweep`.

        Args:
            title: of the job.
            config: maps a point of the grids to the configuration of its rows.
            units: metric -> unit, of the metrics of `trial`.
            key: see `sweep`, as for all below.
            trial: the function to sweep.
            seeds: their number; None for a trial without randomness and rows without a seed.
            static: grid.
            traced: grid.
            inner: grid.
        """

        def entry(point: Mapping[str, Any], seed: int) -> Entry:
            return Entry(config(dict(point)), None if seeds is None else seed, units)

        count = 1 if seeds is None else check_positive("seeds", seeds)
        outer = grid(static or {})
        lanes = [n | label for n in grid(traced or {}) for label in grid(inner or {})]
        entries = [
            entry(point | lane, seed)
            for point, seed, lane in itertools.product(outer, range(count), lanes)
        ]

        def measure(todo: Sequence[Entry]) -> Iterator[Values]:
            wanted = set(map(_name, todo))
            for result in sweep(
                key, trial, seeds=count, static=static, traced=traced, inner=inner,
                done=lambda point, seed, _: _name(entry(point, seed)) not in wanted,
                progress=False,
            ):  # fmt: skip
                if _name(entry(result.config, result.seed)) in wanted:
                    yield result.metrics

        return cls(title, entries, measure)


def fill(study: Study, jobs: Iterable[Job], *, progress: bool = True) -> None:
    """Run the jobs with rows missing from the record, and append these rows.

    A run that is killed and started again ends with the same rows as an uninterrupted one.

    Args:
        study: receives the rows.
        jobs: run one after the other; a later one may read the rows of those before it.
        progress: show a bar.

    Raises:
        ValueError: rows of a job exist from user code that has changed since (nothing is computed
            then); or a job yields other metrics than it declared, or another number of dicts than
            there are entries; names the job and the difference.
    """
    sources = []
    for job in (jobs := list(jobs)):
        of = functools.cache(functools.partial(source_of, job.measure))
        sources.append([of(*_members(entry)) for entry in job.entries])
        for entry, source in zip(job.entries, sources[-1], strict=True):
            study.check_source(*entry, source)
    with progress_bar(not progress) as bar:
        task = bar.add_task("", total=sum(len(job.entries) for job in jobs))
        for job, known in zip(jobs, sources, strict=True):
            pairs = zip(job.entries, known, strict=True)
            todo = [(entry, source) for entry, source in pairs if not study.has(*entry)]
            bar.update(task, description=job.title, advance=len(job.entries) - len(todo))
            done = _computed(job, [entry for entry, _ in todo])
            for (entry, source), values in zip(todo, done, strict=True):
                study.add(*entry[:2], values, entry.units, source=source, keep=True)
                bar.advance(task)


def _members(entry: Entry) -> list[str]:
    """The strings of a configuration that may name the user's functions."""
    return [v for v in entry.config.values() if isinstance(v, str) and ":" in v]


def _computed(job: Job, todo: Sequence[Entry]) -> Iterator[Values]:
    """The values of the entries, checked."""
    for entry, values in itertools.zip_longest(todo, job.measure(todo) if todo else ()):
        if entry is None or values is None:
            wrong = "fewer" if values is None else "more"
            raise ValueError(
                f"job {job.title!r} gave {wrong} values than its {len(todo)} missing entries."
            )
        lacks, extra = sorted({*entry.units} - {*values}), sorted({*values} - {*entry.units})
        if lacks or extra:
            raise ValueError(
                f"job {job.title!r} must give the metrics it declares: lacks {lacks}, "
                f"also gave {extra}, at {dict(entry.config)}, seed {entry.seed}."
            )
        yield values


def _name(entry: Entry) -> str:
    return identity("", entry.config, entry.seed, "")
