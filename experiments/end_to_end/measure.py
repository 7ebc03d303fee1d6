"""Measurements: rotations learned on the loss of the model, and the loss with them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isojax import quantizers
from isojax.models import LanguageModel, fold_norms
from isojax.quantize import Plan, Quantized, Scorer, quantize, reference
from isojax.quantize.learn_turns import CHECKS, divergence, learn_turns, start_turns
from isojax.quantize.turns import Turns
from isojax.recipes import Coordinates
from isojax.report import Entry

TURNED = """
residual: learned
values: learned
input: identity/absmax bits=4
input:down_proj: learned/absmax bits=4
"""
SETTINGS = {
    "W16A4": Plan.parse(TURNED),
    "W4A4": Plan.parse(TURNED + "weight: identity/absmax:range=mse bits=4"),
}
DESCENT = {"kl_mean": "nats per token"}


class Reader(Scorer):
    """A model, texts to learn from, and texts to test on."""

    def __init__(self, model: LanguageModel, calibration: np.ndarray, texts: np.ndarray) -> None:
        """Store windows to learn from [n, t], and others to test on."""
        super().__init__(model, texts)
        self.params, self.config = fold_norms(model.params, model.config)
        self.calibration = jnp.asarray(calibration)
        folded = dataclasses.replace(model, params=self.params, config=self.config)
        self.hidden = jnp.asarray(reference(folded, calibration).hidden)
        levels = quantizers.absmax(4, "token")
        self.quantizer = quantizers.straight_through(levels, scales="learned")

    def start(self, name: str, seed: int) -> Turns:
        """Rotations of that name; before down_proj a random Hadamard transform."""
        coordinates, down = map(Coordinates.parse, (name, "hadamard"))
        return start_turns(jax.random.key(seed), self.config, coordinates, down)

    def divergence(self, turns: Turns) -> float:
        """Mean KL on all windows to learn from, in nats per token."""
        given = self.params, self.config, self.calibration, self.hidden, turns, self.quantizer
        return float(divergence(*given))

    def learned(
        self, start: Turns, seed: int, steps: int, rate: float
    ) -> tuple[Turns, dict[int, float]]:
        """The turns with the least divergence, and the divergence after some steps."""
        told = {0: self.divergence(start)}

        def tell(step: Any, kl: Any) -> None:
            told[int(step)] = float(kl)

        key = jax.random.fold_in(jax.random.key(seed), 3)
        given = self.params, self.config, self.calibration, self.hidden, start, self.quantizer
        turns = jax.block_until_ready(learn_turns(key, *given, steps=steps, rate=rate, tell=tell))
        jax.effects_barrier()
        return turns, told

    def values(
        self, name: str, seed: int, steps: int, rate: float, todo: Sequence[Entry]
    ) -> Iterator[Any]:
        """Values of entries: of the descent, of one window, or of the tails over all windows."""
        start = self.start(name, seed)
        turns, told = self.learned(start, seed, steps, rate)

        @functools.lru_cache(1)
        def made(setting: str, learned: bool) -> Quantized:
            stats = (turns if learned else start).stats(self.config.num_hidden_layers)
            return quantize(
                jax.random.key(seed), self.model, SETTINGS[setting], stats, progress=False
            )

        @functools.cache
        def scores(setting: str, learned: bool) -> Any:
            return self.scores(lambda _: made(setting, learned))

        for entry in todo:
            on = entry.config
            if "step" in on:
                yield {"kl_mean": told[on["step"]]}
            else:
                yield self.scored(entry, scores(on["setting"], on["learned"]))


def steps_told(steps: int) -> range:
    """The numbers of steps after which the divergence is reported."""
    return range(0, steps + 1, steps // CHECKS)
