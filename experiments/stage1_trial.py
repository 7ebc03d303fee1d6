"""What `stage1` measures: errors on synthetic vectors and on those of a model, and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from experiments.stage1_report import theory
from isojax import Codec, metrics, quantizers, transforms
from isojax.report import Study
from isojax.sweep import sweep

if TYPE_CHECKING:
    from experiments.stage1 import Config

TENSORS = ("key", "value")
Case = tuple[str, int]  # codebook, bits
ERRORS: dict[str, str] = dict.fromkeys(
    ("nmse", "nmse_worst_layer", "cosine", "block_energy_cv", "saturation_share"), "1"
)
COSTS = {"params": "count", "fmas": "count"}
TIMES = {"time_us": "us", "copy_ratio": "1"}


def codebook(case: Case, dim: int) -> quantizers.Codebook:
    """Levels for one coordinate of a unit vector: N(0, 1/dim), or the exact law."""
    kind, bits = case
    if kind == "sphere":
        return quantizers.lloyd_max_sphere(bits, dim, normalize="norm")
    return quantizers.lloyd_max_gaussian(bits, dim, normalize="norm")


def errors(t: transforms.Transform, x: jax.Array, case: Case) -> dict[str, jax.Array]:
    """Error of the vectors `x`, and how their rotated energy and coordinates lie."""
    book = codebook(case, x.shape[-1])
    x_hat = Codec(t, book).roundtrip(x)
    y = t.apply(x.astype(jnp.float32))
    y = y / jnp.linalg.norm(y, axis=-1, keepdims=True)
    own = y[..., : y.shape[-1] // 4 * 4]
    energy = jnp.square(own).reshape(*own.shape[:-1], -1, 4).sum(-1)
    return {
        "nmse": metrics.nmse(x, x_hat),
        "cosine": metrics.cosine(x, x_hat),
        "block_energy_cv": jnp.mean(jnp.std(energy, -1) / jnp.mean(energy, -1)),
        "saturation_share": jnp.sum(jnp.abs(y) > book.levels[-1]) / x.size,
    }


def record(
    study: Study,
    base: dict[str, Any],
    trial: Callable[..., Any],
    config: Config,
    static: dict[str, Any],
    cases: Sequence[tuple[Any, ...]],
) -> None:
    """Sweep `trial` over seeds and `cases` (codebook, bits, tensor), save for rows that exist."""

    def named(point: dict[str, Any]) -> dict[str, Any]:
        rest = {k: v for k, v in point.items() if k != "case"}
        return base | rest | dict(zip(("codebook", "bits", "tensor"), point["case"], strict=False))

    results = sweep(
        jax.random.key(0), trial, seeds=config.seeds, static=static, inner={"case": cases},
        done=lambda point, seed, names: study.has(named(point), seed, names),
        title=base["section"],
    )  # fmt: skip
    for result in results:
        study.add(named(result.config), result.seed, result.metrics, ERRORS)


def unit_vectors(key: jax.Array, n: int, dim: int, dtype: str) -> jax.Array:
    """Uniformly random ones."""
    x = jax.random.normal(key, (n, dim))
    return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)


def synthetic(study: Study, config: Config, names: tuple[str, ...]) -> None:
    """Errors on synthetic unit vectors, and what theory says of them."""

    def trial(key: jax.Array, *, dim: int, dtype: str, transform: str) -> dict[Case, Any]:
        own, others = jax.random.split(key)
        t = transforms.from_name(own, transform, dim)
        x = unit_vectors(others, config.vectors, dim, dtype)
        return {case: errors(t, x, case) for case in config.cases}

    static = {"dim": config.dims, "dtype": config.dtypes, "transform": names}
    record(
        study,
        {"section": "synthetic", "vectors": config.vectors},
        trial,
        config,
        static,
        config.cases,
    )
    for dim in config.dims:
        for kind, bits in config.cases:
            levels = codebook((kind, bits), dim).levels
            on = {"section": "theory", "codebook": kind, "bits": bits, "dim": dim}
            study.add(on, None, {"nmse": theory(levels, dim, kind)}, ERRORS)


def times(study: Study, config: Config, names: tuple[str, ...]) -> None:
    """Time of a round trip beside that of `x + 1`, called in turn in one process."""
    for dim in config.dims:
        for dtype in config.dtypes:
            base = {"section": "time", "dim": dim, "dtype": dtype, "vectors": config.vectors}
            cases = [base | {"transform": n, "bits": b} for n in names for b in config.bits]
            if all(study.has(c, None, ["time_us", "copy_ratio"]) for c in cases):
                continue
            own, others = jax.random.split(jax.random.key(0))
            x = unit_vectors(others, config.vectors, dim, dtype)
            rotations = [transforms.from_name(own, c["transform"], dim) for c in cases]
            books = [codebook(("gaussian", c["bits"]), dim) for c in cases]
            codecs = [Codec(t, book) for t, book in zip(rotations, books, strict=True)]
            both_ways = jax.jit(lambda codec, x: codec.roundtrip(x))
            calls = [both_ways.lower(codec, x).compile() for codec in codecs]
            copy = jax.jit(lambda x: x + 1).lower(x).compile()
            taken = [[] for _ in range(len(calls) + 1)]
            for i in range(config.repeats + 2):
                found = [clock(copy, x)]
                found += [clock(f, codec, x) for f, codec in zip(calls, codecs, strict=True)]
                for times_of, seconds in zip(taken, found, strict=True):
                    times_of += [seconds] if i >= 2 else []
            base_us, *us = [1e6 * statistics.median(t) for t in taken]
            study.add(base | {"transform": "copy"}, None, {"time_us": base_us}, TIMES)
            for case, mine in zip(cases, us, strict=True):
                study.add(case, None, {"time_us": mine, "copy_ratio": mine / base_us}, TIMES)


def clock(call: Callable[..., Any], *args: Any) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    jax.block_until_ready(call(*args))
    return time.perf_counter() - start


def real(study: Study, config: Config, names: tuple[str, ...]) -> dict[str, Any]:
    """Errors on the keys and values of a model: means over layers, and the worst layer."""
    from isojax.data import load_text, windows
    from isojax.models import capture_tensors, encode, load_model

    model = load_model(config.model)
    ids = windows(encode(model.tokenizer, load_text(config.text)), config.texts, config.tokens)
    layers, size = range(model.config.num_hidden_layers), model.config.head_dim
    check(names, size)

    wanted = [f"{kind}:{layer}" for kind in TENSORS for layer in layers]
    seen = [capture_tensors(model, window, wanted) for window in ids]
    x = jnp.stack(
        [jnp.concatenate([one[name].reshape(-1, size) for one in seen]) for name in wanted]
    )  # [keys of all layers, then values; tokens * heads, head_dim]

    def trial(key: jax.Array, *, transform: str) -> dict[Case, Any]:
        t = transforms.from_name(jax.random.split(key)[0], transform, size)

        def layer(x: jax.Array) -> dict[Case, Any]:
            return {case: errors(t, x, case) for case in config.cases}

        means = {}
        for case, found in jax.lax.map(layer, x).items():
            by_tensor = {n: v.reshape(len(TENSORS), -1) for n, v in found.items()}
            by_tensor["nmse_worst_layer"] = by_tensor["nmse"].max(1, keepdims=True)
            for i, tensor in enumerate(TENSORS):
                means[(*case, tensor)] = {n: jnp.mean(v[i]) for n, v in by_tensor.items()}
        return means

    base = {
        "section": "real", "model": model.name, "text": config.text.rsplit("/", 1)[-1],
        "windows": config.texts, "length": config.tokens, "dim": size,
    }  # fmt: skip
    cases = [(*case, tensor) for case in config.cases for tensor in TENSORS]
    record(study, base, trial, config, {"transform": names}, cases)
    return base


def check(names: tuple[str, ...], dim: int) -> None:
    """Raise `ValueError` unless the transforms exist for this length."""
    for name in names:
        jax.eval_shape(
            lambda key, name=name: transforms.from_name(key, name, dim), jax.random.key(0)
        )
