"""The claims of the paper tested on the rows of `block_rotation`, in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from isojax.report import Row, Stat, bullets, distinct, select, stat, summarize_by

Losses = dict[int, float]  # by window


def losses(rows: Sequence[Row], block: int, permutation: str) -> Losses:
    """The loss of one point on each window."""
    mine = select(rows, "delta_nll", block=block, permutation=permutation)
    return {r.config["window"]: r.value for r in mine}


def share(start: Losses, mine: Losses, end: Losses) -> str:
    """(start - mine) / (start - end) of the sums over windows, ± by the jackknife over windows.

    A dash for one window, or where start and end are less than two standard errors apart.
    """
    windows = sorted(set(start) & set(mine) & set(end))
    gap = stat([start[i] - end[i] for i in windows]) if windows else None
    if gap is None or gap.n < 2 or gap.mean <= 2 * gap.sem:
        return "-"

    def ratio(kept: Sequence[int]) -> float:
        gained = sum(start[i] - mine[i] for i in kept)
        return gained / sum(start[i] - end[i] for i in kept)

    left_out = [ratio([i for i in windows if i != out]) for out in windows]
    n = len(windows)
    error = math.sqrt((n - 1) * statistics.pvariance(left_out))
    return f"{ratio(windows):.0%} ± {error:.0%}"


def answers(rows: Sequence[Row], looked: Sequence[Row], full: int) -> str:
    """Sentences about one setting and format.

    Args:
        rows: losses.
        looked: statistics of down_proj's input in the same format, by layers.
        full: length of the full rotation.
    """
    blocks = sorted(set(distinct(select(rows, permutation="none"), "block")) - {0, full})
    names = distinct([r for r in rows if r.config["block"]], "permutation")
    start, end = losses(rows, 0, "none"), losses(rows, full, "none")
    said = []
    if blocks:
        first = blocks[0]
        each = ", ".join(f"{n} {share(start, losses(rows, first, n), end)}" for n in names)
        said.append(
            f"Share of the full rotation's gain over none before down_proj ({_mean(start):.4f} to "
            f"{_mean(end):.4f} nats per token) with blocks of {first}: {each}. Published, for the "
            "perplexity and blocks of 16: none 46%, mass_diff 90%."
        )
        steps = ", ".join(
            f"{'full' if b == full else b} {_mean(losses(rows, b, 'none')):.4f}"
            for b in (*blocks, full)
        )
        said.append(f"Loss without permutation, by length of the blocks: {steps}.")
    others = [n for n in names if n != "none"]
    if blocks and others:
        each = ", ".join(f"{n} {_difference(rows, blocks, n)}" for n in others)
        said.append(f"Loss against no permutation, mean over blocks, paired, ± se: {each}.")
    found = [] if "A16" in rows[0].config["setting"] else _correlations(rows, looked)
    return bullets([*said, *found])


def _mean(values: Losses) -> float:
    return statistics.fmean(values.values())


def _difference(rows: Sequence[Row], blocks: Sequence[int], name: str) -> str:
    pairs = [(losses(rows, b, name), losses(rows, b, "none")) for b in blocks]
    pairs = [(a, b) for a, b in pairs if a]
    if not pairs:
        return "-"
    windows = set.intersection(*(set(a) & set(b) for a, b in pairs))
    found: Stat = stat([statistics.fmean(a[i] - b[i] for a, b in pairs) for i in sorted(windows)])
    return f"{found.mean:+.4f} ± {found.sem:.4f}"


def _correlations(rows: Sequence[Row], looked: Sequence[Row]) -> list[str]:
    """Correlations of the loss of points with statistics of the quantizer's input."""
    losses, at = (
        summarize_by([r for r in some if r.config["block"]], metric, "block", "permutation")
        for some, metric in ((rows, "delta_nll"), (looked, "peak"))
    )
    seen = [turn for turn in losses if turn in at]
    loss = [losses[turn].mean for turn in seen]
    if len(seen) < 3 or len(set(loss)) < 2:
        return []

    def with_(metric: str, change: Callable[[float], float] = float) -> str:
        found = summarize_by(looked, metric, "block", "permutation")
        values = [change(found[turn].mean) for turn in seen]
        return f"{statistics.correlation(values, loss):.2f}" if len(set(values)) > 1 else "-"

    return [
        f"Correlation of the loss, over the {len(seen)} points with a rotation, with statistics of "
        "down_proj's input in the first window at seed 0: relative error of its codes "
        f"{with_('relative_error')}, its square {with_('relative_error', lambda x: x * x)}, the "
        f"largest magnitude {with_('peak')}, kurtosis {with_('kurtosis')}."
    ]
