"""Times of GPU kernels from a profile of JAX, attributed to the programs that launched them."""

from __future__ import annotations

import glob
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Event(NamedTuple):
    """One kernel or copy on the device; times in nanoseconds."""

    name: str
    program: str
    start: float
    duration: float


def read_events(folder: str | Path) -> list[Event]:
    """The events on GPU streams of all profiles below `folder`, in the order of their start.

    `program` is the name of the jitted function after `jit_`, the module name in XLA; empty where
    the profile lacks it.
    """
    found = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    planes = [p for path in found for p in jax.profiler.ProfileData.from_file(path).planes]
    return events_of(p for p in planes if p.name.startswith("/device:GPU"))


def events_of(planes: Iterable[Any]) -> list[Event]:
    """The events on the streams of these planes, in the order of their start."""
    events = [
        Event(e.name, _program(e.stats), e.start_ns, e.duration_ns)
        for plane in planes
        for line in plane.lines
        if line.name.startswith("Stream")
        for e in line.events
    ]
    return sorted(events, key=lambda e: e.start)


def _program(stats: Iterable[tuple[str, Any]]) -> str:
    return next((str(value) for name, value in stats if name == "hlo_module"), "")


def per_call(events: Sequence[Event], program: str, calls: int) -> list[float]:
    """Microseconds on the device of each call of `program`: the sum of its kernels.

    If the number of kernels is no multiple of `calls` (an event was lost, or calls launched
    different numbers of kernels), the result is one mean over all calls. Empty if nothing was
    recorded.
    """
    own = [e.duration for e in events if e.program == f"jit_{program}"]
    if not own:
        return []
    each, rest = divmod(len(own), calls)
    if rest or not each:
        return [sum(own) / calls / 1e3]
    return [sum(own[i * each : (i + 1) * each]) / 1e3 for i in range(calls)]


def median_us(events: Sequence[Event], program: str, calls: int) -> float | None:
    """The median of `per_call`, or None."""
    times = per_call(events, program, calls)
    return statistics.median(times) if times else None
