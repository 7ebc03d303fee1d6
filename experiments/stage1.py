"""Stage 1 of vector quantization: does the rotation before the codebook matter?

    python -m experiments.stage1
    python -m experiments.stage1 --model Qwen/Qwen2.5-0.5B --text wikitext-2 --out q05

A vector is divided by its norm, rotated, each coordinate put to the nearest of 2^b Lloyd-Max
levels, and all undone (IsoQuant, arXiv 2603.28430). Measured: what each rotation costs, its error
and time on synthetic unit vectors in the 18 published settings and in bf16, and the same error on
the keys (after RoPE) and values of a model, one vector a head, one rotation a seed for all layers
and heads. Expected for every rotation and for none: on unit vectors of d = 128 an error of 0.1160,
0.0340 and 0.0093 at 2, 3 and 4 bit, as theory says (0.1175, 0.0345 and 0.0095 for d to infinity);
but on keys of the tiny model at 3 bit 0.033 (haar) to 0.052 (identity).
`--quick` takes half a minute on 2 CPU cores.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.common import Common, run
from experiments.stage1_report import add_published, figure, text, theory
from isojax import Codec, metrics, quantizers, transforms
from isojax.report import Study
from isojax.sweep import sweep

TENSORS = ("key", "value")
Case = tuple[str, int]  # codebook, bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Settings."""

    seeds: int = 10
    """Seeds; each draws the rotation and the synthetic vectors."""
    dims: tuple[int, ...] = (128, 256, 512)
    """Lengths of the synthetic vectors."""
    bits: tuple[int, ...] = (2, 3, 4)
    """Bits a coordinate."""
    dtypes: tuple[Literal["float16", "float32", "bfloat16"], ...] = (
        "float16", "float32", "bfloat16",
    )  # fmt: skip
    """Of the synthetic vectors."""
    transforms: tuple[str, ...] = (
        "haar", "hadamard", "rotor", "planar", "quaternion_fast", "quaternion_full",
    )  # fmt: skip
    """Names of `isojax.transforms`; the identity is added."""
    codebooks: tuple[Literal["gaussian", "sphere"], ...] = ("gaussian", "sphere")
    """Lloyd-Max levels of N(0, 1/d), which is always measured, and of the exact law."""
    vectors: int = 8192
    """Synthetic vectors a seed."""
    repeats: int = 51
    """Timed calls of each program, in turn with all others of the same shape."""

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer = {"seeds": 3, "dims": (128,), "dtypes": ("float32",), "vectors": 2048}
        fewer |= {"transforms": ("haar", "rotor", "planar", "quaternion_full")}
        return fewer | {"codebooks": (), "windows": 1, "length": 256, "repeats": 31}

    @property
    def cases(self) -> list[Case]:
        """Codebooks and bits, in the order of the tables."""
        kinds = dict.fromkeys(("gaussian", *self.codebooks))
        return [(kind, bits) for kind in kinds for bits in self.bits]


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
        study.add(named(result.config), result.seed, result.metrics)


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
            study.add(on, None, {"nmse": theory(levels, dim, kind)})


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
            for case, mine in zip(cases, us, strict=True):
                study.add(case, None, {"time_us": mine, "copy_ratio": mine / base_us})
            study.add(base | {"transform": "copy"}, None, {"time_us": base_us})


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


def main(config: Config) -> None:
    """The tables and the figure."""
    for name in ("seeds", "vectors", "repeats"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    names = tuple(dict.fromkeys(("identity", *config.transforms)))
    for dim in config.dims:
        check(names, dim)
        for bits in config.bits:
            codebook(("sphere", bits), dim)
    assert config.out is not None
    study = Study("stage1", config.out, config)
    base = real(study, config, names)
    add_published(study)
    for dim in config.dims:
        for name in names:
            t = transforms.from_name(jax.random.key(0), name, dim)
            on = {"section": "cost", "transform": name, "dim": dim}
            study.add(on, None, {"params": float(t.params), "fmas": float(t.fmas)})
    synthetic(study, config, names)
    times(study, config, names)
    written = text(study, base, config.bits)
    study.finish(written, figure(study, base))
    print(written)


if __name__ == "__main__":
    run(main, Config, "stage1", __doc__)
