"""Times of alternating calls, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax

K = TypeVar("K", bound=Hashable)


def times_in_turn(calls: Mapping[K, Callable[[], Any]], repeats: int) -> dict[K, float]:
    """Median microseconds per call, over `repeats` rounds after two that are not counted.

    Args:
        calls: name -> function of no arguments; it ends when the arrays it returns are computed.
        repeats: rounds, in each of which every function is called once.
    """
    taken: dict[K, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(found[2:]) for name, found in taken.items()}
