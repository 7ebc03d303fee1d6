"""Perplexity of a language model on a text.

    python -m experiments.perplexity
    python -m experiments.perplexity --model Qwen/Qwen2.5-0.5B --text wikitext-2 --out results/q05

Windows of `--length` tokens follow each other from the start of the text and are scored alone:
no BOS, no overlap, the first token of each is not predicted. Rows: `nll` for each window and
`perplexity`, the exponential of its mean over all windows. Nothing is quantized.
Expected on WikiText-2 raw test, first 2048 tokens, fp32: SmolLM2-135M-Instruct (Q4_1) 15.15,
Qwen2.5-Coder-0.5B-Instruct (Q4_K_M) 21.26; 20 s and 40 s on 2 CPU cores.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from rich.progress import track

from experiments.common import Common, run
from isojax.report import Study, draw_lines, new_figure, pivot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Settings."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of parameters and activations; norms, softmax and likelihood are always in fp32."""


def main(config: Config) -> None:
    """Score the windows that the record does not hold yet."""
    from isojax.data import load_text, windows
    from isojax.models import encode, load_model, token_nll

    assert config.out is not None
    study = Study("perplexity", config.out, config, grows=("windows",))
    model = load_model(config.model, config.dtype)
    ids = windows(encode(model.tokenizer, load_text(config.text)), config.texts, config.tokens)
    base = {
        "model": model.name,
        "text": config.text.rsplit("/", 1)[-1],
        "length": config.tokens,
        "dtype": config.dtype,
    }
    score = jax.jit(lambda params, tokens: token_nll(params, model.config, tokens[None]).mean())
    for i in track(range(config.texts), f"{model.name}, windows of {config.tokens} tokens"):
        if not study.has(base | {"window": i}, None, ["nll"]):
            nll = float(score(model.params, jnp.asarray(ids[i])))
            study.add(base | {"window": i}, None, {"nll": nll}, {"nll": "nats per token"})

    scored = [row for row in study.rows("nll", **base) if row.config["window"] < config.texts]
    mean = sum(row.value for row in scored) / len(scored)
    study.add(
        base | {"windows": config.texts}, None, {"perplexity": math.exp(mean)}, {"perplexity": "1"}
    )
    done = study.rows("perplexity", **base, windows=config.texts)
    text = pivot([*scored, *done], ["model", "text", "length", "dtype"], "metric")
    figure, axes = new_figure(1, 1, f"{model.name} on {base['text']}")
    draw_lines(axes[0, 0], scored, "nll", "window", "model", log=False)
    axes[0, 0].set_ylabel("nat a token")
    study.finish(f"nll: mean ± sd over {config.texts} windows, nat a token.\n\n{text}", figure)
    print(f"perplexity {done[0].value:.4f}  nll {mean:.4f} nat a token  ({config.texts} windows)")


if __name__ == "__main__":
    run(main, Config, "perplexity", __doc__)
