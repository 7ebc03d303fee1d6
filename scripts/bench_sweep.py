"""Cost of a study: 24 seeds x 3 transforms x 5 granularities on a 2048 x 1536 tensor.

    python scripts/bench_sweep.py

Rows `time_us` (compilation included), `peak_rss_bytes` and `compiles` for the whole sweep, on
heavy-tailed elements with outlier channels. Expected: under 60 s and 4 GB on 2 CPU cores, one
compilation per transform (one more where the first chunk size does not fit the budget).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from bench_model import peak_rss

from experiments.isotropic_tradeoff.measure import Case, Tensor, make_trial
from isojax import metrics
from isojax.report import Study, pivot
from isojax.sweep import sweep


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    tokens: int = 2048
    width: int = 1536
    seeds: int = 24
    transforms: tuple[str, ...] = ("haar", "hadamard", "quaternion_full")
    granularities: tuple[str, ...] = ("tensor", "token", "channel", "group:128", "group:32")
    out: Path = Path("results/bench_sweep")
    """Folder for rows.jsonl and table.md."""


def main(config: Config) -> None:
    """Run the sweep once and record its cost."""
    study = Study("bench_sweep", config.out, config)
    if study.rows():
        raise SystemExit(f"{config.out} holds a measurement; give another --out.")
    key, channel_key = jax.random.split(jax.random.key(1))
    x = jax.random.t(key, 4.0, (config.tokens, config.width))
    x = x * jnp.exp(jax.random.normal(channel_key, (config.width,)))
    tensor = Tensor(x, metrics.thresholds(x))
    cases = [Case("absmax", 3, g) for g in config.granularities]
    compiled = []
    start = time.perf_counter()
    results = list(
        sweep(
            jax.random.key(0), make_trial(tensor, cases), seeds=config.seeds,
            static={"transform": config.transforms}, inner={"case": cases},
            compiled=compiled.append,
        )
    )  # fmt: skip
    seconds = time.perf_counter() - start
    shape = {"tokens": config.tokens, "width": config.width, "seeds": config.seeds}
    found = {"time_us": seconds * 1e6, "peak_rss_bytes": peak_rss(), "compiles": len(compiled)}
    units = {"time_us": "us", "peak_rss_bytes": "bytes", "compiles": "count"}
    study.add(shape | {"trials": len(results)}, None, found, units)
    study.finish(pivot(study.rows(), [*shape, "trials"], "metric"))
    print((config.out / "table.md").read_text())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
