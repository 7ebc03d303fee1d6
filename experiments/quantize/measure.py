"""Measurements of a plan: scores of texts, costs, errors after layers, memory."""

from __future__ import annotations

import functools
import re
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isojax import metrics
from isojax.models import LanguageModel, Site, encode, forward
from isojax.quantize import Plan, Quantized, Scorer, costs, generate, save, unquantized
from isojax.quantize.score import running
from isojax.report import Entry

COSTS = {
    "weight_bits": "bits per element", "weight_bytes": "bytes", "cache_bits": "bits per element",
    "bytes_per_token": "bytes per token", "side_bytes": "bytes", "online_fmas": "count",
}  # fmt: skip
ERROR = {"relative_error": "1"}
PEAK = {"peak_rss_bytes": "bytes"}
PROMPT = 16  # tokens


class Reader(Scorer):
    """A model, statistics to fit on, texts to test on, and a text to continue."""

    def __init__(
        self, model: LanguageModel, texts: np.ndarray, fit_on: np.ndarray, plans: Sequence[Plan],
        prompt: str, steps: int, folder: Path | None,
    ) -> None:  # fmt: skip
        """Store texts to test on and to fit on, a prompt to continue, and a folder for models."""
        super().__init__(model, texts, fit_on, plans)
        ids = encode(model.tokenizer, prompt) if prompt else texts[0, :PROMPT]
        self.prompt, self.steps, self.folder = np.asarray(ids), steps, folder
        self.told: dict[str, str] = {}

    @functools.cached_property
    def hidden(self) -> np.ndarray:
        """The hidden states after each layer of the exact model on the first text."""
        return np.asarray(_hidden(running(self.model), jnp.asarray(self.texts[0])))

    def values(
        self, name: str, plan: Plan, seed: int, todo: Sequence[Entry]
    ) -> Iterator[dict[str, float]]:
        """Values of the entries of a plan with one seed; the peak of memory is of all windows."""
        _ = self.reference  # not counted
        reset_peak()
        made = self.quantized(plan, seed)
        scores = self.scores(lambda i: made)

        @functools.cache
        def errors() -> np.ndarray:
            return np.asarray(_errors(made, jnp.asarray(self.texts[0]), jnp.asarray(self.hidden)))

        for entry in todo:
            if entry.units == COSTS:
                yield self.costs(made)
            elif entry.units == ERROR:
                yield {"relative_error": float(errors()[entry.config["layer"]])}
            elif entry.units == PEAK:
                for i in range(seed, len(self.texts), entry.config["seeds"]):
                    scores(i)  # also where the record has them
                yield {"peak_rss_bytes": peak()}
            else:
                yield self.scored(entry, scores)
        if not seed:
            self.finish(name, plan, made)

    def costs(self, made: Quantized) -> dict[str, float]:
        """Bits, bytes and multiply-adds, the cache of one window."""
        found = costs(made, self.texts.shape[1])
        return {
            "weight_bits": found.weight_bits, "weight_bytes": found.weight_bytes,
            "cache_bits": found.cache_bits, "bytes_per_token": found.cache_bytes,
            "side_bytes": found.side_bytes, "online_fmas": found.online_fmas,
        }  # fmt: skip

    def go_on(self, name: str, plan: Plan | None) -> str:
        """The continuation of the prompt by a model."""
        if name not in self.told:
            self.finish(name, plan, None)
        return self.told[name]

    def finish(self, name: str, plan: Plan | None, made: Quantized | None) -> None:
        """Save a model and continue the text, if requested."""
        self.told[name], saves = "", self.folder is not None and plan is not None
        if not self.steps and not saves:
            return
        if made is None:
            made = unquantized(self.model) if plan is None else self.quantized(plan, 0)
        if self.folder is not None and plan is not None:
            save(made, self.folder / re.sub(r"[^\w.=-]+", "_", name))
        if self.steps:
            new = generate(made, [self.prompt], self.steps)[0]
            texts = (self.model.tokenizer.decode(list(map(int, ids))) for ids in (self.prompt, new))
            self.told[name] = "{}: {!r} -> {!r}".format(name, *texts)


@jax.jit
def _hidden(model: Quantized, ids: Int[Array, " t"]) -> Float[Array, "layers t d"]:
    """The hidden states after each layer, in the coordinates of the unquantized model."""
    cache = model.cache(1, len(ids)) if model.stores else None
    sites = tuple(Site("hidden", i + 1) for i in range(model.config.num_hidden_layers))
    given = {"hooks": model.hooks, "cache": cache, "capture": sites}
    return forward(model.params, model.config, ids[None], **given).captured["hidden"][:, 0]


@jax.jit
def _errors(
    made: Quantized, ids: Int[Array, " t"], exact: Float[Array, "layers t d"]
) -> Float[Array, " layers"]:
    """Relative error of the hidden states after each layer, mean over tokens."""
    x = _hidden(made, ids)
    if "residual" in made.shared:
        x = made.shared["residual"].inverse.apply(x)
    return jax.vmap(jax.vmap(metrics.relative_error))(exact, x).mean(-1)


def reset_peak() -> None:
    """Reset the peak of `peak`, on Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak() -> int:
    """Peak resident bytes of this process since `reset_peak`; off Linux, since its start."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
