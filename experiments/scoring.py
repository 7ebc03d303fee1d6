"""Texts scored by a model and its quantized versions, shared by studies of whole models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isojax.models import SUMMARY_UNITS, LanguageModel, Reference, Scores, reference_nll
from isojax.quantize import Plan, Quantized, calibrate, quantize, reference, score, summary
from isojax.quantize.calibrate import keyed
from isojax.report import Entry, Job
from isojax.transforms import Dense, Transform

NLL = {"nll": SUMMARY_UNITS["nll"]}
SCORED = {
    name: SUMMARY_UNITS[name] for name in ("nll", "delta_nll", "kl_mean", "same_top1", "rms_dp")
}
"""Metrics of a window."""
TAILS = {name: SUMMARY_UNITS[name] for name in ("kl_median", "kl_p99", "kl_p999")}
"""Metrics of all tokens of several windows."""


class Texts:
    """A model, texts to test on, and the results of the exact model."""

    def __init__(self, model: LanguageModel, texts: np.ndarray) -> None:
        """Store texts [n, tokens]."""
        self.model, self.texts = model, texts

    @functools.cached_property
    def reference(self) -> Any:
        """The hidden states of the exact model on the texts."""
        return reference(self.model, self.texts)

    @functools.cached_property
    def exact(self) -> list[float]:
        """Mean nll of each text, unquantized, nats per token."""
        return [float(nll.mean()) for nll in exact_nll(self.reference, self.texts)]

    def exact_job(self, config: Mapping[str, Any], title: str = "exact") -> Job:
        """The nll of each text, unquantized."""
        entries = [Entry({**config, "window": i}, None, NLL) for i in range(len(self.texts))]
        return Job(
            title, entries, lambda todo: [{"nll": self.exact[e.config["window"]]} for e in todo]
        )

    def read(self, model: LanguageModel | Quantized, i: int) -> Scores:
        """Scores of text i, read by a model."""
        exact = self.reference._replace(hidden=self.reference.hidden[i : i + 1])
        return score(model, self.texts[i : i + 1], exact)

    def scored(
        self, entry: Entry, scores: Callable[[int], Scores], windows: Iterable[int]
    ) -> dict[str, float]:
        """Values of an entry: of its window, or of all tokens of `windows` if it has none.

        Other declared metrics must be added by the study.
        """
        i = entry.config.get("window")
        every = [scores(j) for j in (windows if i is None else [i])]
        found = summary(jax.tree.map(lambda *a: np.concatenate(a), *every))
        return {name: value for name, value in found.items() if name in entry.units}


class Planned(Texts):
    """The same, with texts that plans are fitted on."""

    def __init__(
        self, model: LanguageModel, texts: np.ndarray, fit_on: np.ndarray, plans: Sequence[Plan],
        **given: Any,
    ) -> None:  # fmt: skip
        """Store texts to test on and to fit on; further arguments are for `calibrate`."""
        super().__init__(model, texts)
        self.fit_on, self.given = fit_on, given
        shared = [plan for plan in plans if not keyed(plan)]
        self.stats = calibrate(model, fit_on, shared, **given)

    def quantized(self, plan: Plan, seed: int) -> Quantized:
        """The model of a plan."""
        key, stats = jax.random.key(seed), self.stats
        if keyed(plan):
            stats = calibrate(self.model, self.fit_on, plan, key=key, **self.given)
        return quantize(key, self.model, plan, stats, progress=False)


def exact_nll(exact: Reference, texts: np.ndarray) -> Iterator[np.ndarray]:
    """The nll of the tokens of each text by the exact model, nats."""
    for hidden, ids in zip(exact.hidden, texts, strict=True):
        yield np.asarray(_nll(exact._replace(hidden=hidden[None]), jnp.asarray(ids)[None])[0])


_nll = jax.jit(reference_nll)


def dense(transform: Transform, *sizes: int) -> Any:
    """An isometry as a matrix, or those of layers and heads, so that most share one program."""
    if transform.dim != transform.out_dim or not transform.isometry:
        return transform
    make: Callable[[Any], Any] = lambda t: Dense(t.matrix())  # noqa: E731
    for size in reversed(sizes):
        make = jax.vmap(make, axis_size=size)
    return make(transform)
