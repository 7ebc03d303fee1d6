"""Perplexity of a language model on a text.

    isojax perplexity
    isojax perplexity --model Qwen/Qwen2.5-0.5B --text wikitext-2 --out results/q05

Consecutive windows of `--length` tokens from the start of the text are scored independently: no
BOS, no overlap, the first token of each is not predicted. Rows: `nll` per window and `perplexity`,
the exponential of its mean over all windows. Nothing is quantized.

Expected on WikiText-2 raw test, first 2048 tokens, fp32: SmolLM2-135M-Instruct (Q4_1) 15.15,
Qwen2.5-Coder-0.5B-Instruct (Q4_K_M) 21.26; 20 s and 40 s on 2 CPU cores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from isojax.report import Entry, Job, Row, complete, draw_lines, fill, new_figure, pivot, summarize

from ..common import Common, run, say

NLL = {"nll": "nats per token"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Settings."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of parameters and activations; norms, softmax and likelihood are always in fp32."""


def main(config: Config) -> None:
    """Score the windows."""
    from isojax.models import token_nll

    study = config.study("perplexity", "windows")
    model, texts, base, _ = config.load(dtype=config.dtype)
    base |= {"dtype": config.dtype}
    score = jax.jit(lambda params, tokens: token_nll(params, model.config, tokens[None]).mean())

    def nll(entries: Sequence[Entry]) -> Iterator[dict[str, jax.Array]]:
        for entry in entries:
            yield {"nll": score(model.params, jnp.asarray(texts[entry.config["window"]]))}

    def scored() -> list[Row]:
        return complete(study.rows(**base), config.texts, list(base))

    def perplexity() -> dict[str, float]:
        return {"perplexity": math.exp(summarize(scored(), "nll").mean)}

    entries = [Entry(base | {"window": i}, None, NLL) for i in range(config.texts)]
    total = base | {"windows": config.texts}
    windows = Job(f"{model.name}, windows of {config.tokens} tokens", entries, nll)
    fill(study, [windows, Job.one("perplexity", total, {"perplexity": "1"}, perplexity)])
    text = pivot(scored(), list(base), "metric")
    figure, axes = new_figure(1, 1, f"{model.name} on {base['text']}")
    draw_lines(axes[0, 0], scored(), "nll", "window", "model", log=False)
    axes[0, 0].set_ylabel("nats per token")
    study.finish(f"nll: mean ± sd over {config.texts} windows, nats per token.\n\n{text}", figure)
    (found,) = study.rows("perplexity", **total)
    say(f"perplexity {found.value:.4f}  nll {math.log(found.value):.4f} nats per token")


if __name__ == "__main__":
    run(main, Config, "perplexity", __doc__)
