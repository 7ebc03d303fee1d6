"""Time of stage 1 and of Hadamard transforms on a CPU, compared with a pass and installed peers.

    pip install fht-cpu hadamard-transform    # peers; torch comes with the test extra
    pip install git+https://github.com/scrya-com/rotorquant    # more of them, in torch
    export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
    OMP_WAIT_POLICY=PASSIVE python scripts/bench_cpu.py    # a minute; on a quiet machine
    python scripts/bench_cpu.py --quick

The variables make glibc keep its memory, and make idle threads of one way release the cores: else
most of the time is page faults and waiting. Calls of all ways of a case alternate, so that other
load on the machine affects them alike; rows are medians, and their ratio to `x + 1` on as many
elements in the same rounds. Stage 1 is a round trip of 8192 vectors at 3 bit, one norm per vector;
`torch dense` is two dense products with a search between them, as in TurboQuant, and `torch
IsoQuant` and the like are the modules of that repository. In stage 1 isojax overwrites its input,
and torch allocates new memory. In a Hadamard case all ways, and the pass, read one array and write
another; fht-cpu does not normalise, and gets a preallocated output. `best peers` is the
ratio to the fastest way that is not ours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from isojax import Codec, quantizers, transforms
from isojax.report import Study, pivot, times_in_turn

Ways = dict[str, Callable[[], Any]]
PEERS = ("torch", "fht-cpu", "hadamard-transform")
UNITS = {"time_us": "us", "copy_ratio": "1", "peer_ratio": "1"}
"""Prefixes of the names of other programs' ways."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    vectors: int = 8192
    numbers: int = 2**22
    """Elements of a Hadamard case."""
    bits: int = 3
    stage1: tuple[str, ...] = ("quaternion_full", "quaternion_fast", "planar", "rotor", "haar")
    dims: tuple[int, ...] = (128,)
    """Lengths in stage 1."""
    hadamard: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    repeats: int = 30
    quick: bool = False
    """Few small cases."""
    out: Path = Path("results/bench_cpu")
    """Folder for rows.jsonl and table.md."""


def main(config: Config) -> None:
    """Time every case and write the table."""
    if config.quick:
        config = dataclasses.replace(
            config, vectors=256, numbers=2**14, hadamard=(128, 512), repeats=3
        )
    study = Study("bench_cpu", config.out, config)
    if study.rows():
        raise SystemExit(f"{config.out} holds a measurement; give another --out.")
    for dim in config.dims:
        x = unit_vectors(config.vectors, dim)
        base = {"case": "stage 1", "dim": dim, "vectors": config.vectors, "bits": config.bits}
        record(study, base, stage1_ways(config, x), config.repeats)
    for dim in config.hadamard:
        x = unit_vectors(config.numbers // dim, dim)
        base = {"case": "hadamard", "dim": dim, "vectors": len(x), "bits": 0}
        record(study, base, hadamard_ways(x), config.repeats)
    index = {"case": "case", "d": "dim", "vectors": "vectors", "way": "way"}
    shown = {"time_us": "us", "copy_ratio": "passes", "peer_ratio": "best peers"}
    study.finish(pivot(study.rows(), index, "metric", order=shown))
    print((config.out / "table.md").read_text())


def unit_vectors(number: int, dim: int) -> jax.Array:
    """Random unit vectors."""
    x = jax.random.normal(jax.random.key(0), (number, dim))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def record(study: Study, base: dict[str, Any], ways: Ways, repeats: int) -> None:
    """Record the times of all ways, in alternating calls; the first one is the pass."""
    times = times_in_turn(ways, repeats)
    best = min((us for way, us in times.items() if way.startswith(PEERS)), default=None)
    for way, us in times.items():
        found = {"time_us": us, "copy_ratio": us / times["pass"]}
        found |= {"peer_ratio": us / best} if best else {}
        study.add(base | {"way": way}, None, found, UNITS)


def jitted(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """A compiled call that waits for its result."""
    program = jax.jit(call).lower(*args).compile()
    return lambda: jax.block_until_ready(program(*args))


def in_place(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """The same, with the result in place of the last argument."""
    *fixed, x = args
    program = jax.jit(call, donate_argnums=len(fixed)).lower(*args).compile()
    held = [jnp.array(x, copy=True)]

    def step() -> None:
        held[0] = jax.block_until_ready(program(*fixed, held[0]))

    return step


def stage1_ways(config: Config, x: jax.Array) -> Ways:
    """Round trips by every transform, and a dense one in torch."""
    dim = x.shape[-1]
    book = quantizers.lloyd_max_gaussian(config.bits, dim, normalize="norm")
    ways = {"pass": in_place(lambda x: x + 1, x)}
    for name in config.stage1:
        codec = Codec(transforms.from_name(jax.random.key(1), name, dim), book)
        ways[name] = in_place(Codec.roundtrip, codec, x)
    torch = peer("torch")
    if torch is not None:
        matrix = torch.tensor(np.array(transforms.haar(jax.random.key(1), dim).matrix()))
        levels, v = torch.tensor(np.array(book.levels)), torch.tensor(np.array(x))
        middles = (levels[1:] + levels[:-1]) / 2

        def dense() -> Any:
            norm = v.norm(dim=-1, keepdim=True)
            index = torch.bucketize(v / norm @ matrix, middles)
            return levels[index] @ matrix.T * norm

        ways["torch dense"] = dense
        public = peer("turboquant")
        for name in ("IsoQuant", "PlanarQuant", "RotorQuant") if public is not None else ():
            module = getattr(public, f"{name}MSE")(dim, config.bits)
            ways[f"torch {name}"] = functools.partial(module, v)
    return ways


def hadamard_ways(x: jax.Array) -> Ways:
    """Hadamard transforms: plain, here and by the peers, and after random signs."""
    dim = x.shape[-1]
    signed = transforms.hadamard(jax.random.key(1), dim)
    ways = {
        "pass": jitted(lambda x: x + 1, x),
        "isojax": jitted(transforms.fwht, x),
        "isojax, random signs": jitted(transforms.Hadamard.apply, signed, x),
    }
    fht, torch = peer("fht_cpu"), peer("torch")
    if fht is not None:
        own, out = np.array(x), np.empty(x.shape, np.float32)
        ways["fht-cpu"] = lambda: fht.fht(own, out=out)
    if torch is not None:
        v, plain = torch.tensor(np.array(x)), transforms.hadamard(None, dim)
        matrix = torch.tensor(np.array(plain.matrix()))
        ways["torch dense"] = lambda: v @ matrix
        other = peer("hadamard_transform")
        if other is not None:
            ways["hadamard-transform"] = lambda: other.hadamard_transform(v)
    return ways


def peer(name: str) -> Any:
    """An optional package, or None."""
    try:
        return __import__(name)
    except ImportError:
        print(f"{name} is not installed; left out.")
        return None


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
