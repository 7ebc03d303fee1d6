"""Cost of learning: 128 x 128 rotations for 32 seeds x 4 learning rates, in one program.

    python scripts/bench_learn.py

Each run takes 500 steps of `stiefel` Adam from a random Hadamard matrix, on the 4 bit absmax error
of minibatches of 256 out of 8192 vectors, heavy-tailed with outlier channels, and is evaluated
twice on all of them. Three ways: `vmap`, all runs in one program; `loop`, one program run after
run; and `programs`, one program per run, as where a seed or a rate is a constant in it. The last
two are timed on a few runs and multiplied. Expected: `vmap` under 2 minutes on 2 CPU cores. Matrix
products fill a core in both, so `loop` takes about as long; `programs`, mostly compilation, several
times as long.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from isojax.learn import fit, minibatch, quantization_error, stiefel
from isojax.quantizers import absmax
from isojax.report import Study, pivot
from isojax.transforms import Dense, hadamard

CHECKS = 2
PART = 512  # vectors evaluated at a time, so that all runs need little memory


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    vectors: int = 8192
    dim: int = 128
    seeds: int = 32
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    """Learning rates."""
    steps: int = 500
    batch: int = 256
    """Vectors per step."""
    timed: int = 2
    """Runs of `loop` and `programs` that are timed."""
    out: Path = Path("results/bench_learn")
    """Folder for rows.jsonl and table.md."""


def main(config: Config) -> None:
    """Learn all rotations, and some of them one after the other."""
    study = Study("bench_learn", config.out, config)
    if study.rows():
        raise SystemExit(f"{config.out} holds a measurement; give another --out.")
    key, channel_key = jax.random.split(jax.random.key(1))
    x = jax.random.t(key, 4.0, (config.vectors, config.dim))
    x = x * jnp.exp(jax.random.normal(channel_key, (config.dim,)))
    batches, quantizer = jax.random.key(2), absmax(4, "token")

    def learn(x: Any, key: Any, rate: Any) -> Any:
        def error(t: Any, x: Any) -> Any:
            return quantization_error(t, x, quantizer, rounding="straight_through")

        def error_of_all(t: Any) -> Any:
            parts = x.reshape(-1, min(PART, len(x)), x.shape[-1])
            return jnp.mean(jax.lax.map(lambda part: error(t, part), parts))

        start = Dense(hadamard(key, config.dim).matrix())
        fitted, _ = fit(
            lambda t, key: error(t, minibatch(key, x, config.batch)), start,
            stiefel(optax.adam(rate)), key=batches, steps=config.steps, checks=CHECKS,
            objective=error_of_all,
        )  # fmt: skip
        return error_of_all(fitted) / error_of_all(start)

    keys, rates = jax.random.split(jax.random.key(0), config.seeds), jnp.asarray(config.rates)
    runs = len(keys) * len(rates)
    over_rates = jax.vmap(learn, (None, None, 0))
    batched, compiling = compiled(jax.vmap(over_rates, (None, 0, None)), x, keys, rates)
    shares, running = timed(batched, x, keys, rates)
    single, _ = compiled(learn, x, keys[0], rates[0])
    loop = [timed(single, x, keys[i], rates[0])[1] for i in range(config.timed)]
    apart = [
        sum(compiled(lambda x, i=i: learn(x, keys[i], rates[0]), x)[1:])
        for i in range(config.timed)
    ]
    shape = {"vectors": config.vectors, "dim": config.dim, "runs": runs, "steps": config.steps}
    for way, seconds in {
        "vmap": compiling + running,
        "loop": runs * sum(loop) / len(loop),
        "programs": runs * (sum(loop) + sum(apart)) / len(loop),
    }.items():
        study.add(shape | {"way": way}, None, {"time_us": seconds * 1e6}, {"time_us": "us"})
    best = jnp.min(jnp.mean(shares, 0))
    study.add(shape | {"way": "vmap"}, None, {"error_share": best}, {"error_share": "1"})
    study.finish(pivot(study.rows(), [*shape, "way"], "metric"))
    print((config.out / "table.md").read_text())


def compiled(call: Any, *args: Any) -> tuple[Any, float]:
    """The program of `call`, and the seconds to compile it."""
    start = time.perf_counter()
    program = jax.jit(call).lower(*args).compile()
    return program, time.perf_counter() - start


def timed(program: Any, *args: Any) -> tuple[Any, float]:
    """The result of `program`, and the seconds that it took."""
    start = time.perf_counter()
    return jax.block_until_ready(program(*args)), time.perf_counter() - start


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
