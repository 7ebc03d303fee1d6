"""Peak memory and time to calibrate, quantize and score a model of 1.5B parameters on a CPU.

    python scripts/bench_quantize.py
    python scripts/bench_quantize.py --layers 4

Random weights in bf16 in the shapes of Qwen2.5-1.5B; weights and inputs of 4 bits by GPTQ behind
QuaRot's rotations; statistics (10 GB) are kept in a temporary folder. Rows `time_us`, compilation
included, and `peak_rss_bytes` of each step (Linux).
Expected 15 GB at most; 16 minutes on a CPU core.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tyro
from bench_load import SHAPE

from isojax.models import LanguageModel, ModelConfig, param_shapes
from isojax.quantize import calibrate, find_plan, quantize, score
from isojax.report import Study, pivot

UNITS = {"time_us": "us", "peak_rss_bytes": "bytes"}
PIECE = 1 << 24  # weights drawn at once
DEVIATION = 0.02


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    plan: str = "quarot; cache: none"
    """Name or text of a plan."""
    layers: int = SHAPE.num_hidden_layers
    """Layers of the model."""
    windows: int = 2
    """Windows to calibrate on."""
    length: int = 256
    """Tokens per window."""
    out: Path = Path("results/bench_quantize")
    """Folder for rows.jsonl and table.md."""


def random_model(config: ModelConfig) -> LanguageModel:
    """A model of normal weights in bf16, with norms of ones."""
    rng = np.random.default_rng(0)

    def normal(shape: jax.ShapeDtypeStruct) -> jax.Array:
        made = np.empty(shape.shape, ml_dtypes.bfloat16)
        flat = made.reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE]
            piece[:] = DEVIATION * rng.standard_normal(piece.size, dtype=np.float32)
        return jnp.asarray(made)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        scale = path[-1].key == "scale"
        return jnp.ones(shape.shape, jnp.bfloat16) if scale else normal(shape)

    params = jax.tree_util.tree_map_with_path(leaf, param_shapes(config))
    return LanguageModel("random 1.5B", config, params, None)  # pyright: ignore[reportArgumentType]


def measured(step: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a step, its time, and the peak of memory while it ran."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    start = time.perf_counter()
    made = jax.block_until_ready(step())
    seconds = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    return made, {"time_us": seconds * 1e6, "peak_rss_bytes": int(peak[1]) * 1024}


def main(config: Config) -> None:
    """Measure the three steps, make the table."""
    study = Study("bench_quantize", config.out, config)
    base = {"model": "random 1.5B", "dtype": "bfloat16"} | {
        name: getattr(config, name) for name in ("plan", "layers", "windows", "length")
    }
    if not study.has(base | {"step": "score"}, None, UNITS):
        plan = find_plan(config.plan)
        model = random_model(dataclasses.replace(SHAPE, num_hidden_layers=config.layers))
        ids = np.random.default_rng(1).integers(
            0, SHAPE.vocab_size, (config.windows, config.length), np.int32
        )
        key, rows = jax.random.key(0), {}
        with tempfile.TemporaryDirectory() as folder:  # statistics stay on disk, read by layer
            stats, rows["calibrate"] = measured(lambda: calibrate(model, ids, plan, cache=folder))
            made, rows["quantize"] = measured(lambda: quantize(key, model, plan, stats))
        _, rows["score"] = measured(lambda: score(made, ids[:1]))
        for step, values in rows.items():
            study.add(base | {"step": step}, None, values, UNITS)
    study.finish(pivot(study.rows(), ["step"], "metric", over=("seed",)))
    print((config.out / "table.md").read_text())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
