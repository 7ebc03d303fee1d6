"""Measurements of a case: losses of the whole model, costs, and the error per layer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isojax import metrics
from isojax.models import Site, forward
from isojax.models.hooks import INPUTS
from isojax.quantize import Plan, Quantized, Scorer, costs
from isojax.quantize.parts import SITES
from isojax.quantizers.levels import Levels
from isojax.recipes import Samples
from isojax.report import Entry
from isojax.transforms import Identity

from .methods import FORMATS

COSTS = {
    "weight_bits": "bits per element", "online_transforms": "count per layer",
    "online_fmas": "count", "side_bytes": "bytes",
}  # fmt: skip
LAYER = {
    "concentration_db": "dB", "weight_concentration_db": "dB", "alignment_db": "dB",
    "sqnr_db": "dB", "expected_sqnr_db": "dB",
}  # fmt: skip


class Reader(Scorer):
    """A model, texts to fit on, and texts to test on."""

    def values(self, plan: Plan, seed: int, todo: Sequence[Entry]) -> Iterator[dict[str, float]]:
        """Values of entries of a plan: of one window, of all windows, or its costs."""
        made = self.quantized(plan, seed)
        scores = self.scores(lambda i: made)
        for entry in todo:
            if entry.units == COSTS:
                found = costs(made, 1)
                codecs = filter(None, (each.of(0) for each in made.inputs.values()))
                online = sum(not isinstance(codec.transform, Identity) for codec in codecs)
                yield {
                    "weight_bits": found.weight_bits, "online_transforms": online,
                    "online_fmas": found.online_fmas, "side_bytes": found.side_bytes,
                }  # fmt: skip
            else:
                yield self.scored(entry, scores)

    def layers(
        self, plan: Plan, seed: int, form: str, todo: Sequence[Entry]
    ) -> Iterator[dict[str, float]]:
        """Values of entries: of one input of one layer, on the first text, before quantization."""
        made = self.quantized(plan, seed)
        seen = _inputs(made, jnp.asarray(self.texts[:1]))
        for entry in todo:
            layer, site = entry.config["layer"], entry.config["input"]
            readers = [name for name, read in INPUTS.items() if read == site]
            kernels = [made.params["layers"][name]["kernel"][layer] for name in readers]
            found = _look(seen[site][layer], jnp.concatenate(kernels, 1), form)
            yield {name: float(value) for name, value in found.items()}


@jax.jit
def _inputs(made: Quantized, ids: Array) -> dict[str, Float[Array, "layers t d"]]:
    """Inputs of linear layers in their coordinates."""
    number = made.config.num_hidden_layers
    sites = tuple(Site(f"input:{site}", i) for site in SITES for i in range(number))
    found = forward(made.params, made.config, ids, hooks=made.hooks, capture=sites).captured
    return {site: found[f"input:{site}"][:, 0] for site in SITES}


@functools.partial(jax.jit, static_argnames="form")
def _look(x: Float[Array, "t d"], w: Float[Array, "d o"], form: str) -> dict[str, Array]:
    """Concentration of input and weight, alignment, and the output's SQNR, measured and by law."""
    group = {"int4g32": 32, "int4g128": 128}.get(form, 0)
    of_inputs, of_weights = (Levels.parse(levels) for levels in FORMATS[form])
    x_hat = of_inputs.fit(Samples(x), 4).roundtrip(x)
    w_hat = of_weights.fit(Samples(w.T), 4).roundtrip(w.T).T
    y, y_hat = (jnp.matmul(a, b, precision="highest") for a, b in ((x, w), (x_hat, w_hat)))
    return {
        "concentration_db": metrics.concentration_db(x, group),
        "weight_concentration_db": metrics.concentration_db(w.T, group),
        "alignment_db": metrics.alignment_db(x, w),
        "sqnr_db": metrics.sqnr_db(y, y_hat),
        "expected_sqnr_db": metrics.expected_sqnr_db(x, w, group=group),
    }
