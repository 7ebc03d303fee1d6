"""Measurements of `stage1`: costs, errors on synthetic vectors and on those of a model, times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isojax import Codec, metrics, quantizers, transforms
from isojax.report import Entry, Job, times_in_turn

from ..common import check_drawn
from .config import Case, Config

TENSORS = ("key", "value")
ERRORS = {"nmse": "1", "cosine": "1", "block_energy_cv": "1", "saturation_share": "1"}
COSTS = {"params": "count", "fmas": "count"}
TIMES = {"time_us": "us", "copy_ratio": "1"}


def codebook(case: Case, dim: int) -> quantizers.Codebook:
    """Levels for one coordinate of a unit vector: N(0, 1/dim), or the exact law."""
    kind, bits = case
    if kind == "sphere":
        return quantizers.lloyd_max_sphere(bits, dim, normalize="norm")
    return quantizers.lloyd_max_gaussian(bits, dim, normalize="norm")


def theory(levels: Any, dim: int, law: str) -> float:
    """NMSE of one coordinate of a random unit vector, to the nearest of `levels`, by quadrature.

    Args:
        levels: in increasing order.
        dim: length of the vector.
        law: `sphere` for f(z) ~ (1 - z^2)^((dim - 3) / 2), `gaussian` for N(0, 1/dim).
    """
    levels = np.asarray(levels, np.float64)
    if law == "sphere":
        t = np.linspace(-np.pi / 2, np.pi / 2, 400_001)
        z, mass = np.sin(t), np.cos(t) ** (dim - 2)
    else:
        z = np.linspace(-10, 10, 400_001) / dim**0.5
        mass = np.exp(-dim * z**2 / 2)
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, z)]
    return float(dim * np.sum(mass * (z - nearest) ** 2) / np.sum(mass))


def errors(t: transforms.Transform, x: jax.Array, case: Case) -> dict[str, jax.Array]:
    """Error of the vectors `x`, and statistics of their rotated energy and coordinates."""
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


def named(base: Mapping[str, Any], *names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Configuration of a row from a point of a sweep, the parts of its case by `names`."""
    return lambda point: {
        **base,
        **{k: v for k, v in point.items() if k != "case"},
        **dict(zip(names, point["case"], strict=True)),
    }


def unit_vectors(key: jax.Array, n: int, dim: int, dtype: str) -> jax.Array:
    """Uniformly random unit vectors."""
    x = jax.random.normal(key, (n, dim))
    return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)


def costs(config: Config) -> Iterator[Job]:
    """Parameters and FMAs of each rotation."""
    for dim, name in itertools.product(config.dims, config.coordinates):
        t = transforms.from_name(jax.random.key(0), name, dim)
        on = {"section": "cost", "coordinates": name, "dim": dim}
        values = {"params": t.params, "fmas": t.fmas}
        yield Job.one("costs", on, COSTS, lambda values=values: values)


def synthetic(config: Config) -> Iterator[Job]:
    """Errors on synthetic unit vectors, and their theoretical values."""

    def trial(key: jax.Array, *, dim: int, dtype: str, coordinates: str) -> dict[Case, Any]:
        own, others = jax.random.split(key)
        t = transforms.from_name(own, coordinates, dim)
        x = unit_vectors(others, config.vectors, dim, dtype)
        return {case: errors(t, x, case) for case in config.cases}

    base = {"section": "synthetic", "vectors": config.vectors}
    static = {"dim": config.dims, "dtype": config.dtypes, "coordinates": config.coordinates}
    yield Job.sweep(
        "synthetic", named(base, "codebook", "bits"), ERRORS, jax.random.key(0), trial,
        seeds=config.seeds, static=static, inner={"case": config.cases},
    )  # fmt: skip

    def expected(entries: Sequence[Entry]) -> Iterator[dict[str, float]]:
        for entry in entries:
            dim, kind, bits = (entry.config[k] for k in ("dim", "codebook", "bits"))
            yield {"nmse": theory(codebook((kind, bits), dim).levels, dim, kind)}

    laws = [
        {"section": "theory", "codebook": kind, "bits": bits, "dim": dim}
        for dim in config.dims
        for kind, bits in config.cases
    ]
    yield Job("theory", [Entry(on, None, {"nmse": "1"}) for on in laws], expected)


def times(config: Config) -> Iterator[Job]:
    """Times of round trips and of `x + 1`, in alternating calls in one process."""
    for dim, dtype in itertools.product(config.dims, config.dtypes):
        yield _times(config, dim, dtype)


def _times(config: Config, dim: int, dtype: str) -> Job:
    base = {"section": "time", "dim": dim, "dtype": dtype, "vectors": config.vectors}
    cases = list(itertools.product(config.coordinates, config.bits))

    def measure(entries: Sequence[Entry]) -> Iterator[dict[str, float]]:
        own, others = jax.random.split(jax.random.key(0))
        x = unit_vectors(others, config.vectors, dim, dtype)
        both_ways = jax.jit(lambda codec, x: codec.roundtrip(x))

        def compiled(name: str, bits: int) -> Callable[[], Any]:
            t = transforms.from_name(own, name, dim)
            codec = Codec(t, codebook(("gaussian", bits), dim))
            program = both_ways.lower(codec, x).compile()
            return lambda: program(codec, x)

        copy = jax.jit(lambda x: x + 1).lower(x).compile()
        calls = {("copy", None): lambda: copy(x)} | {case: compiled(*case) for case in cases}
        us = times_in_turn(calls, config.repeats)
        for entry in entries:
            mine = us[entry.config["coordinates"], entry.config.get("bits")]
            found = {"time_us": mine, "copy_ratio": mine / us["copy", None]}
            yield {metric: found[metric] for metric in entry.units}

    copied = Entry(base | {"coordinates": "copy"}, None, {"time_us": "us"})
    timed = [Entry(base | {"coordinates": name, "bits": bits}, None, TIMES) for name, bits in cases]
    return Job(f"times {dim} {dtype}", [copied, *timed], measure)


def real(config: Config) -> tuple[dict[str, Any], Job]:
    """Errors on the keys and values of a model: means over layers, and the worst layer.

    Returns the common configuration of its rows, and the job.
    """
    from isojax.models import capture_tensors

    model, texts, base, _ = config.load()
    layers, size = range(model.config.num_hidden_layers), model.config.head_dim
    check_drawn(config.coordinates, size)

    wanted = [f"{kind}:{layer}" for kind in TENSORS for layer in layers]
    seen = [capture_tensors(model, window, wanted) for window in texts]
    x = jnp.stack(
        [jnp.concatenate([one[name].reshape(-1, size) for one in seen]) for name in wanted]
    )  # [keys of all layers, then values; tokens * heads, head_dim]

    def trial(key: jax.Array, *, coordinates: str) -> dict[Any, Any]:
        t = transforms.from_name(jax.random.split(key)[0], coordinates, size)

        def layer(x: jax.Array) -> dict[Case, Any]:
            return {case: errors(t, x, case) for case in config.cases}

        means = {}
        for case, found in jax.lax.map(layer, x).items():
            by_tensor = {n: v.reshape(len(TENSORS), -1) for n, v in found.items()}
            by_tensor["nmse_worst_layer"] = by_tensor["nmse"].max(1, keepdims=True)
            for i, tensor in enumerate(TENSORS):
                means[(*case, tensor)] = {n: jnp.mean(v[i]) for n, v in by_tensor.items()}
        return means

    base |= {"section": "real", "windows": config.texts, "dim": size}
    return base, Job.sweep(
        "real", named(base, "codebook", "bits", "tensor"), ERRORS | {"nmse_worst_layer": "1"},
        jax.random.key(0), trial, seeds=config.seeds, static={"coordinates": config.coordinates},
        inner={"case": [(*case, tensor) for case in config.cases for tensor in TENSORS]},
    )  # fmt: skip
