"""Rotate or align: under which coding, and at which rate, does each win?

    python -m experiments.alignment
    python -m experiments.alignment --model Qwen/Qwen2.5-0.5B --text wikitext-2 \
        --calibration-text valid.txt --out results/alignment

Keys and values (a unit is a head), inputs of linear layers and weights are turned into other
coordinates, coded at 1 to 6 bits a number and compared on vectors that nothing was fitted on (of
weights, every second output). Rotations: identity, haar, hadamard, learned_rotation (least 3 bit
absmax error, from Hadamard). Alignment: pca, local_pca (axes of 4 clusters), low_rank (leading
axes, as many as cost least at 3 bit, and the rest, each rotated), learned_alignment (least rate +
lambda distortion, from pca). Coders: `fixed`, the same levels for all coordinates and a norm a
vector; `allocated`, whole bits where they take most of the error away; `entropy`, one step and an
entropy coder for each coordinate with the frequencies of the calibration text; `lattice`, the same
with eight neighbours rounded to the lattice E8. All stand beside Shannon's bound for Gaussian
vectors of the same covariance.
Sources: Goyal 2001, KurTail (2503.01483), SpinQuant (2405.16406), Balle et al. (1611.01704).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from experiments.alignment_report import figure, text
from experiments.common import Calibrated, run
from isojax._core.checks import check_choice, check_positive
from isojax.report import Study

TENSORS = ("key", "value", "input:q_proj", "weight:gate_proj")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Calibrated):
    """Settings."""

    tensors: tuple[str, ...] = TENSORS
    """key, value, input:NAME or weight:NAME, of linear layers such as q_proj, gate_proj,
    down_proj."""
    layers: int = 3
    """Layers to look at, evenly spaced from the first to the last."""
    transforms: tuple[str, ...] = ()
    """Of those above; all by default."""
    rates: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """Bits a number."""
    seeds: int = 5
    """Seeds of what is drawn or learned."""
    calibration_windows: int = 4
    """Windows to fit on."""

    @property
    def texts(self) -> int:  # noqa: D102
        return self.windows or 2

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer = {"tensors": ("key", "input:q_proj"), "layers": 2, "rates": (2, 4), "seeds": 2}
        return fewer | {"transforms": ("identity", "haar", "pca", "learned_alignment")}


def main(config: Config) -> None:
    """Fit, code, and write what the record does not hold yet."""
    from experiments.alignment_trial import CODERS, RANDOM, TRANSFORMS, UNITS, bound, measure
    from isojax.models import capture_tensors

    assert config.out is not None
    names = config.transforms or TRANSFORMS
    for name in names:
        check_choice("transforms", name, TRANSFORMS)
    for rate in config.rates:
        check_choice("rates", rate, range(1, 9))
    for name in ("seeds", "layers"):
        check_positive(name, getattr(config, name))
    for name in ("tensors", "rates"):
        if not getattr(config, name):
            raise ValueError(f"{name} must name at least one, got none.")
    study = Study(
        "alignment", config.out, config, grows=("seeds", "tensors", "transforms", "rates")
    )
    model, texts, fit_on, base = config.load()
    last = model.config.num_hidden_layers - 1
    layers = sorted({round(i) for i in np.linspace(0, last, config.layers)})

    wanted = [f"{tensor}:{layer}" for tensor in config.tensors for layer in layers]
    seen = [[capture_tensors(model, ids, wanted) for ids in windows] for windows in (fit_on, texts)]

    def vectors(tensor: str, layer: int) -> tuple[jax.Array, jax.Array]:
        """[units, n, d] to fit on, and others to test on."""
        name = f"{tensor}:{layer}"
        if tensor.startswith("weight"):
            rows = seen[0][0][name]
            return rows[None, ::2], rows[None, 1::2]

        def units(windows: Any) -> jax.Array:
            x = jnp.concatenate([one[name] for one in windows])
            size = model.config.head_dim if tensor in ("key", "value") else x.shape[-1]
            return x.reshape(len(x), -1, size).swapaxes(0, 1)

        return units(seen[0]), units(seen[1])

    with Progress() as bar:
        cases = list(itertools.product(config.tensors, layers))
        task = bar.add_task("", total=len(cases) * len(names))
        for tensor, layer in cases:
            here, pair = base | {"tensor": tensor, "layer": layer}, None
            for name in names:
                bar.update(task, description=f"{tensor} {layer} {name}")
                for seed in range(config.seeds if name in RANDOM else 1):
                    number = seed if name in RANDOM else None
                    on = here | {"transform": name}
                    if all(
                        study.has(on | {"coder": c, "bits": r}, number, ["nmse"])
                        for c, r in itertools.product(CODERS, config.rates)
                    ):
                        continue
                    if pair is None:
                        pair = vectors(tensor, layer)
                        for (coder, bits), least in bound(*pair, config.rates).items():
                            shannon = {"nmse": float(least["nmse"])}
                            study.add(here | {"coder": coder, "bits": bits}, None, shannon, UNITS)
                    found = measure(jax.random.key(seed), *pair, name, config.rates)
                    for (coder, bits), values in found.items():
                        own = {"coder": coder, "bits": bits} if coder else {}
                        study.add(on | own, number, values, UNITS)
                bar.advance(task)
    study.finish(text(study, base), figure(study, base))
    print((config.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main, Config, "alignment", __doc__)
