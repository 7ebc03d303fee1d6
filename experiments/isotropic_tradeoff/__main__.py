"""The Isotropic Tradeoff: what does a global rotation do to outliers and to the noise floor?

    isojax isotropic-tradeoff
    isojax isotropic-tradeoff --model Qwen/Qwen2.5-1.5B --text wikitext-2 --out q15

Quantizes a tensor of a language model in several coordinates (unchanged, Haar-rotated, randomised
Hadamard, PCA axes) and measures three parts of the error: the top 1% of |x| (outliers), the
bottom 90% (noise floor), and entries that were silent and now fire, or fired and now are silent.
Seeds vary the rotation.

Controls: the zero predictor, and Gaussian noise of the rotation's noise floor.

Source: S. Dev, The Isotropic Tradeoff (2026), 10.5281/zenodo.19338651; 3 bit, one absmax scale per
tensor, final hidden state; this setting is always measured.

Expected: with SmolLM2-135M and Qwen2.5-Coder-0.5B outlier error falls by 95 to 98% with every seed,
and the sign of the noise floor's change depends on the seed; with the tiny model both fall.

The check value is 2.2721 with Qwen/Qwen2.5-1.5B on the first 2048 tokens of WikiText-2. 3 minutes
on 2 CPU cores with the tiny model.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

import jax.numpy as jnp

from isojax import metrics
from isojax.recipes import Coordinates
from isojax.report import Job, fill

from ..common import Common, finish, run, say
from .measure import Case, Tensor, check_names, jobs
from .report import PUBLISHED_CHECK, add_published, figure, text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Settings."""

    seeds: int = 24
    """Seeds of each random transform."""
    tensor: str = "hidden:final"
    """`hidden:final`, `hidden:L`, `input:NAME:L`, `key:L` or `value:L`."""
    weights: tuple[str, ...] = ("weight:q_proj:middle", "weight:down_proj:middle")
    """Weights for the second table, `weight:NAME:L`, `middle` for the middle layer."""
    skip_tokens: int = 0
    """Tokens left out at the start of each window (1 drops attention sinks)."""
    coordinates: tuple[str, ...] = ("identity", "haar", "hadamard", "pca")
    """Such as haar, block_hadamard:32, pca (fitted on the windows that follow), chains of them, or
    package.module:name; identity and haar are always among them."""
    quantizers: tuple[str, ...] = ("absmax", "absmax_mse", "lloyd_max")
    """absmax (always among them), minmax (both also with `_mse`, `_percentile` for a range up to
    the 99.9% quantile, `_std` for 4 standard deviations), kivi, lloyd_max."""
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    """Bits per element; 3, the published one, is always among them."""
    weight_quantizers: tuple[str, ...] = ("absmax", "lloyd_max")
    """Quantizers of the weights."""
    weight_bits: tuple[int, ...] = (3,)
    """Bits of the weights."""
    granularities: tuple[str, ...] = ("tensor", "token", "channel", "group:64", "group:32")
    """Elements that share a scale: tensor (always among them), token, channel, or group:N. A
    default N that does not divide the width becomes the largest smaller one that does."""
    top: float = 0.99
    """Quantile of |x| from which an element is an outlier."""
    bottom: float = 0.90
    """Quantile of |x| up to which an element belongs to the noise floor."""
    silent: float = 0.5
    """|x| below it is silent."""
    fired: float = 1.0
    """|x| above it fires."""
    unit: Literal["abs", "rms"] = "abs"
    """Unit of the two thresholds."""
    rescale: bool = False
    """Scale the tensor so that its check value is the published 2.2721."""

    per_channel: bool = False
    """Take the two quantiles per channel instead of over the whole tensor."""
    levels: Literal["restricted", "balanced", "full"] = "restricted"
    """Levels of absmax at b bit: scale max|x| / q with q = 2^(b-1) - 1 and codes -q to q
    (restricted); / (q + 1/2) and one more code below (balanced); / (q + 1) likewise (full)."""

    def quickened(self) -> dict[str, Any]:  # noqa: D102
        fewer = {"seeds": 6, "bits": (2, 3, 4), "quantizers": ("absmax",)}
        fewer |= {"weight_bits": (2, 3, 4), "weight_quantizers": ("absmax",)}
        fewer |= {"weights": ("weight:down_proj:0",)}
        return fewer | ({} if self.model == "tiny" else {"seeds": 2, "length": 512})

    def resolved(self) -> Config:  # noqa: D102
        return dataclasses.replace(
            super().resolved(),
            coordinates=tuple(dict.fromkeys(("identity", "haar", *self.coordinates))),
            quantizers=tuple(dict.fromkeys(("absmax", *self.quantizers))),
            bits=tuple(sorted({*self.bits, 3})),
            granularities=tuple(dict.fromkeys(("tensor", *self.granularities))),
        )


def main(config: Config) -> None:
    """Both tables and the figure."""
    from isojax.data import load_text, windows
    from isojax.models import capture_tensors, encode, load_model

    names = config.coordinates
    fitted = any(Coordinates.parse(name).needs for name in names)

    quantized = config.quantizers, config.bits
    quantized_weights = config.weight_quantizers, config.weight_bits

    def cases(kinds: tuple[Any, ...], granularities: tuple[str, ...]) -> list[Case]:
        every = itertools.product(*kinds, granularities)
        return [Case(name, bits, by, config.levels) for name, bits, by in every]

    for kinds in (quantized, quantized_weights):
        check_names(names, cases(kinds, config.granularities))
    config.check_positive("seeds", "length")
    if not 0 <= config.skip_tokens < config.tokens:
        raise ValueError(
            f"skip_tokens must be at least 0 and below length={config.tokens}, "
            f"got {config.skip_tokens}."
        )
    if config.tensor.startswith("weight:"):
        raise ValueError(f"tensor must be an activation, got {config.tensor!r}; see --weights.")
    study = config.study("isotropic_tradeoff", "seeds")
    model = load_model(config.model)
    middle = str(model.config.num_hidden_layers // 2)
    weights = [name.replace(":middle", f":{middle}") for name in config.weights]
    inputs = {w: w.replace("weight:", "input:") for w in weights}
    tokens, count = encode(model.tokenizer, load_text(config.text)), config.texts
    ids = windows(tokens, count, config.tokens)
    if fitted:
        fits = len(tokens) // config.tokens
        if fits < 2 * count:
            raise ValueError(
                f"windows must be at most {fits // 2}, since axes are fitted on as many "
                f"further windows: the text holds {fits} of {config.tokens} tokens, got {count}."
            )
        ids = windows(tokens, 2 * count, config.tokens)
    seen = [capture_tensors(model, window, (config.tensor, *inputs.values())) for window in ids]

    def joined(name: str, part: slice) -> Any:
        return jnp.concatenate([one[name][config.skip_tokens :] for one in seen[part]])

    x = joined(config.tensor, slice(count))
    samples = joined(config.tensor, slice(count, None)) if fitted else None
    split = (config.top, config.bottom, config.silent, config.fired, config.unit)
    at = metrics.thresholds(x, *split, pooled=not config.per_channel)
    check = float(metrics.noise_floor_mse(x, jnp.zeros_like(x), at.floor))
    say(
        f"check value, mean square of the bottom {config.bottom:.0%}: {check:.4f} "
        f"(published for Qwen/Qwen2.5-1.5B: {PUBLISHED_CHECK})"
    )
    if config.rescale:
        factor = (PUBLISHED_CHECK / check) ** 0.5
        x, samples = x * factor, samples if samples is None else samples * factor
        at = metrics.thresholds(x, *split, pooled=not config.per_channel)
    base = config.base(model) | {
        "windows": count, "skip_tokens": config.skip_tokens, "rescale": config.rescale,
        "tensor": config.tensor,
    }  # fmt: skip
    tensor = Tensor(x, at, samples)
    granularities = config.dividing("granularities", x.shape[-1])
    fixed = cases(quantized, granularities)
    tensor.check(names, fixed)
    units = {"check_value": "squared input units"}
    todo = [Job.one("check value", base, units, lambda: {"check_value": check})]
    for coordinates, *some in (
        (names, *fixed), (names, Case("none", 0)), (names, Case("ecsq", 3)),
        (names, Case("ecsq", 3, matches="haar")), (("identity",), Case("zero", 0)),
        (("identity",), Case("gaussian_noise", 3, matches="haar")),
    ):  # fmt: skip
        todo += jobs(base, tensor, coordinates, some, config.seeds)
    for name in weights:
        w = capture_tensors(model, ids[0], [name])[name]
        w = w / jnp.sqrt(jnp.mean(w * w))
        at = metrics.thresholds(w, silent=0.2, fired=0.4)
        tensor = Tensor(w, at, w, joined(inputs[name], slice(count))[-256:])
        fixed = cases(quantized_weights, config.dividing("granularities", w.shape[-1]))
        tensor.check(names, fixed)
        todo += jobs(base | {"tensor": name}, tensor, names, fixed, config.seeds)
    fill(study, todo)
    add_published(study)
    written = text(study, base, weights, x.shape)
    finish(study, written, figure(study, base, config.bits, granularities))


if __name__ == "__main__":
    run(main, Config, "isotropic_tradeoff", __doc__)
