"""Texts scored by a model and its quantized versions, as rows of a study."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from isojax.models import SUMMARY_UNITS, LanguageModel, Reference, Scores, reference_nll
from isojax.quantize.calibrate import calibrate, keyed
from isojax.quantize.plan import Plan
from isojax.quantize.quantize import quantize
from isojax.quantize.quantized import Quantized
from isojax.quantize.score import reference, score, summary
from isojax.quantize.stats import Stats
from isojax.report import Entry, Job

NLL, WINDOW, WHOLE = (
    {name: SUMMARY_UNITS[name] for name in names}
    for names in (
        ("nll",),
        ("nll", "delta_nll", "kl_mean", "same_top1", "rms_dp"),
        ("kl_median", "kl_p99", "kl_p999"),
    )
)


class Scorer:
    """A model, windows of text to score, and plans fitted on other windows.

    A quantized model has rows of every window (`nll`, `delta_nll`, `kl_mean`, `same_top1`,
    `rms_dp`) and of all tokens of all windows (`kl_median`, `kl_p99`, `kl_p999`); see
    `isojax.models.summary`. Divergences are from the unquantized model.

        scorer = Scorer(model, texts, fit_on, [plan])
        quantized = functools.partial(scorer.quantized, plan)
        job = scorer.job("mine", base | {"plan": "mine"}, quantized)
        fill(study, [scorer.exact_job(base), job])
    """

    def __init__(
        self,
        model: LanguageModel,
        texts: Integer[np.ndarray, "n t"],
        fit_on: Any = None,
        plans: Iterable[Plan] = (),
        **given: Any,
    ) -> None:
        """Store what is scored.

        Args:
            model: unquantized.
            texts: windows of token ids [n, t].
            fit_on: texts of `calibrate`, for plans that need statistics.
            plans: all plans to be quantized; they share one pass over `fit_on`.
            **given: further arguments of `calibrate`.
        """
        self.model, self.texts, self.fit_on = model, texts, fit_on
        self.plans: Sequence[Plan] = list(plans)
        self.given = given

    @functools.cached_property
    def reference(self) -> Reference:
        """The hidden states of the unquantized model on the texts."""
        return reference(self.model, self.texts)

    @functools.cached_property
    def exact(self) -> Float[np.ndarray, "n rest"]:
        """The nll of each token but the first by the unquantized model, nats [n, t - 1]."""
        texts = enumerate(jnp.asarray(self.texts))
        return np.concatenate([_nll(self.reference.window(i), ids[None]) for i, ids in texts])

    @functools.cached_property
    def stats(self) -> Stats:
        """The statistics of all plans but those whose rotations are learned for each key."""
        shared = [plan for plan in self.plans if not keyed(plan)]
        return calibrate(self.model, self.fit_on, shared, **self.given)

    def quantized(self, plan: Plan, seed: int = 0) -> Quantized:
        """The model of a plan, drawn and learned with the key of a seed."""
        key, stats = jax.random.key(seed), self.stats
        if keyed(plan):
            stats = calibrate(self.model, self.fit_on, plan, key=key, **self.given)
        return quantize(key, self.model, plan, stats, progress=False)

    def read(self, made: LanguageModel | Quantized, i: int) -> Scores:
        """Scores [1, t - 1] of text i by a model; see `isojax.quantize.score`."""
        return score(made, self.texts[i : i + 1], self.reference.window(i))

    def scores(self, made: Callable[[int], Quantized]) -> Callable[[int], Scores]:
        """The function from i to the scores of text i by the model `made(i)`, computed once."""
        return functools.cache(lambda i: self.read(made(i), i))

    def entries(
        self,
        config: Mapping[str, Any],
        seed: int | Callable[[int], int] | None = None,
        *,
        every: int | None = None,
        more: Mapping[str, str] | None = None,
    ) -> list[Entry]:
        """The rows of a quantized model: one entry per window, and one of all their tokens.

        Args:
            config: of all rows; `window` is added, or `windows`, their number.
            seed: of the rows; None where nothing is random. Or a function from the number of a
                window to its seed; rows of all tokens then have none.
            every: number of seeds that share the windows: seed s reads windows s, s + every, ...,
                and rows of all tokens have it as `seeds`. None: each seed reads all windows.
            more: metric -> unit, of further metrics of a window, which the study measures.
        """
        first = seed if isinstance(seed, int) else 0
        read = range(first % (every or 1), len(self.texts), every or 1)
        units = WINDOW | dict(more or {})
        found = [
            Entry({**config, "window": i}, seed(i) if callable(seed) else seed, units) for i in read
        ]
        whole = {**config, "windows": len(self.texts)} | ({"seeds": every} if every else {})
        return [*found, Entry(whole, None if callable(seed) else seed, WHOLE)] if found else []

    def scored(self, entry: Entry, scores: Callable[[int], Scores]) -> dict[str, float]:
        """Values of one of `entries`, but for metrics that the study measures.

        Args:
            entry: of one window, or of all that its seed reads.
            scores: see `scores`.
        """
        every = entry.config.get("seeds", 1)
        read = range((entry.seed or 0) % every, len(self.texts), every)
        each = [scores(i) for i in ([entry.config["window"]] if "window" in entry.config else read)]
        found = summary(jax.tree.map(lambda *a: np.concatenate(a), *each))
        return {name: value for name, value in found.items() if name in entry.units}

    def exact_job(self, config: Mapping[str, Any], title: str = "exact") -> Job:
        """The job of the nll of each window by the unquantized model."""
        entries = [Entry({**config, "window": i}, None, NLL) for i in range(len(self.texts))]

        def measure(todo: Sequence[Entry]) -> Iterator[dict[str, float]]:
            for entry in todo:
                yield {"nll": float(self.exact[entry.config["window"]].mean())}

        return Job(title, entries, measure)

    def job(
        self,
        title: str,
        config: Mapping[str, Any],
        made: Callable[[int], Quantized],
        seed: int | Callable[[int], int] | None = None,
        *,
        every: int | None = None,
    ) -> Job:
        """The job of `entries`, window i read by the model `made(i)`."""

        def measure(todo: Sequence[Entry]) -> Iterator[dict[str, float]]:
            scores = self.scores(made)
            for entry in todo:
                yield self.scored(entry, scores)

        return Job(title, self.entries(config, seed, every=every), measure)


_nll = jax.jit(reference_nll)
