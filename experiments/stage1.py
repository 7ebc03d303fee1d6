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
from typing import Any, Literal

import jax

from experiments.common import Common, run
from experiments.stage1_report import add_published, figure, text
from experiments.stage1_trial import COSTS, Case, check, codebook, real, synthetic, times
from isojax import transforms
from isojax.report import Study


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


def main(config: Config) -> None:
    """The tables and the figure."""
    for name in ("seeds", "vectors", "repeats"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    names = tuple(dict.fromkeys(("identity", *config.transforms)))
    if len(names) == 1:
        raise ValueError("transforms must name another one than identity.")
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
            study.add(on, None, {"params": t.params, "fmas": t.fmas}, COSTS)
    synthetic(study, config, names)
    times(study, config, names)
    written = text(study, base, config.bits)
    study.finish(written, figure(study, base))
    print(written)


if __name__ == "__main__":
    run(main, Config, "stage1", __doc__)
