"""Scores of a decoder on a text: its likelihood, and its divergence from a reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from isojax._core.checks import check_positive
from isojax.kvcache import Cache
from isojax.models.config import ModelConfig
from isojax.models.decoder import Params, forward, logits
from isojax.models.hooks import Hooks
from isojax.models.inputs import check_tokens, known_tokens

SUMMARY_UNITS = {
    "nll": "nats per token",
    "delta_nll": "nats per token",
    "kl_mean": "nats per token",
    "kl_median": "nats per token",
    "kl_p99": "nats per token",
    "kl_p999": "nats per token",
    "same_top1": "share of tokens",
    "rms_dp": "probability",
}  # of the results of `summary`


class Reference(NamedTuple):
    """The hidden states of the unquantized model on some texts.

    Attributes:
        hidden: after the final norm, as `forward` returns it.
        params: its parameters. Only the head is used, which may differ from that of the other
            model: a merged rotation of the residual stream changes it.
        tokens: of the texts, or None where they are not kept.
    """

    hidden: Float[Array, "b t d"]
    params: Params
    tokens: Integer[Array, "b t"] | None = None

    def window(self, i: int) -> Reference:
        """The reference of window `i` alone, without its tokens."""
        return Reference(self.hidden[i][None], self.params)


class Scores(NamedTuple):
    """Scores of each token of a text but the first, predicted by a model, q, and a reference, p.

    Attributes:
        nll: negative log-likelihood -log q(token), in nats.
        kl: divergence KL(p || q) of the whole distributions, in nats. This and the following are
            None without a reference.
        same_top: whether p and q have the same most likely token; False where they are NaN.
        dp: q(token) - p(token).
    """

    nll: Float[Array, "*b t-1"]
    delta_nll: Float[Array, "*b t-1"] | None = None
    kl: Float[Array, "*b t-1"] | None = None
    same_top: Bool[Array, "*b t-1"] | None = None
    dp: Float[Array, "*b t-1"] | None = None


def reference(params: Params, config: ModelConfig, tokens: Integer[Array, "b t"]) -> Reference:
    """Run the unquantized model on texts, as the reference of `token_scores`.

    Args:
        params: the tree of `init_params`.
        config: static.
        tokens: as for `forward`.

    Raises:
        ValueError: as `forward`.
    """
    return Reference(forward(params, config, tokens).hidden, params)


def token_scores(
    params: Params,
    config: ModelConfig,
    tokens: Integer[Array, "b t"],
    reference: Reference | None,
    *,
    hooks: Hooks = Hooks(),  # noqa: B008
    cache: Cache | None = None,
    chunk: int = 256,
) -> Scores:
    """Likelihood of every token but the first, and the divergence from a reference.

    One forward pass and two products with a head, computed in fp32. Logits are computed for
    `chunk` tokens at a time, so memory beyond the forward pass is a few arrays [chunk, vocab]; for
    gradients they are computed again, not stored.

    Args:
        params: the tree of `init_params`.
        config: static.
        tokens: texts of at least two tokens; hooks act on all of them. Where they are traced, a
            text with an id out of range gives NaN.
        reference: of the same tokens, from `reference`; None for only the likelihood.
        hooks: as for `forward`.
        cache: an empty cache to read the tokens through; a packed one shows the effect of its
            codes.
        chunk: tokens per step; static.

    Raises:
        ValueError: `chunk` is not a whole number of at least 1, a text has fewer than two tokens
            or one out of range, the cache does not fit (see `forward`), or the reference is of
            other texts or another vocabulary.
    """
    check_tokens(config, tokens, least=2)
    if reference is not None and reference.hidden.shape[:2] != tokens.shape:
        raise ValueError(
            f"reference must be of tokens of shape {tokens.shape}, got hidden of shape "
            f"{reference.hidden.shape}."
        )
    hidden = forward(params, config, tokens, hooks=hooks, cache=cache).hidden
    return _scores(Reference(hidden, params), tokens, reference, chunk)


def reference_nll(
    reference: Reference, tokens: Integer[Array, "b t"], *, chunk: int = 256
) -> Float[Array, "b t-1"]:
    """Negative log-likelihood of every token but the first by a reference, in nats.

    One product with the head; the forward pass is the one that made the reference.

    Args:
        reference: of the same tokens.
        tokens: texts of at least two tokens.
        chunk: tokens whose logits are held at once; static.
    """
    return _scores(reference, tokens, None, chunk).nll


def _scores(
    own: Reference, tokens: Integer[Array, "b t"], reference: Reference | None, chunk: int
) -> Scores:
    """Scores of texts from the hidden states of a model and of a reference."""

    def score(targets: Array, hidden: Array, exact: Array | None = None) -> Scores:
        read = logits(own.params, hidden)
        known, places = known_tokens(targets, read.shape[-1])

        def at_target(x: Array) -> Array:
            found = jnp.take_along_axis(x, places[:, None], axis=-1)[:, 0]
            return jnp.where(known, found, jnp.nan)

        nll = jax.nn.logsumexp(read, axis=-1) - at_target(read)
        if reference is None or exact is None:
            return Scores(nll)
        exact = logits(reference.params, exact)
        if exact.shape != read.shape:
            raise ValueError(
                f"reference must have a head of vocab_size={read.shape[-1]}, got one of "
                f"{exact.shape[-1]}."
            )
        p, q = jax.nn.log_softmax(exact), jax.nn.log_softmax(read)
        kl = jnp.where(known, _divergence(p, q), jnp.nan)
        same_top = (exact.argmax(-1) == read.argmax(-1)) & ~jnp.isnan(kl)
        log_p, log_q = at_target(p), at_target(q)
        return Scores(nll, log_p - log_q, kl, same_top, jnp.exp(log_q) - jnp.exp(log_p))

    each = (own,) if reference is None else (own, reference)
    return _by_chunks(score, chunk, tokens[:, 1:], *(r.hidden[:, :-1] for r in each))


def summary(scores: Scores) -> dict[str, Float[Array, ""]]:
    """Scalars over all tokens, those of `llama-perplexity --kl-divergence` of llama.cpp.

    `SUMMARY_UNITS` has their units.
    `nll`, `delta_nll` and `kl_mean` are means; `kl_median`, `kl_p99` and `kl_p999` the quantiles
    0.5, 0.99 and 0.999, exact, with linear interpolation as in `numpy.quantile`; `same_top1` is
    the share of tokens whose most likely one is the same, `rms_dp` the root of the mean square of
    `dp`. One token that is NaN makes all of them NaN.

    Args:
        scores: of any shape, so that several windows may be stacked or concatenated. Without a
            reference only `nll` is returned.
    """
    nll, delta, kl, same_top, dp = scores
    means = {"nll": jnp.mean(nll)}
    if delta is None or kl is None or same_top is None or dp is None:
        return means
    unknown = jnp.isnan(kl)
    ordered = jnp.sort(kl, axis=None)

    def kl_quantile(q: float) -> Array:
        below, part = divmod(q * (kl.size - 1), 1)
        low, high = ordered[int(below)], ordered[min(int(below) + 1, kl.size - 1)]
        return jnp.where(unknown.any(), jnp.nan, low + part * (high - low))

    return means | {
        "delta_nll": jnp.mean(delta),
        "kl_mean": jnp.mean(kl),
        "kl_median": kl_quantile(0.5),
        "kl_p99": kl_quantile(0.99),
        "kl_p999": kl_quantile(0.999),
        "same_top1": jnp.mean(jnp.where(unknown, jnp.nan, same_top)),
        "rms_dp": jnp.sqrt(jnp.mean(jnp.square(dp))),
    }


def token_nll(
    params: Params,
    config: ModelConfig,
    tokens: Integer[Array, "b t"],
    hooks: Hooks = Hooks(),  # noqa: B008
    chunk: int = 256,
    cache: Cache | None = None,
) -> Float[Array, "b t-1"]:
    """Negative log-likelihood of every token but the first, in nats: that of `token_scores`.

    The mean over a text, exponentiated, is its perplexity. Arguments and errors are those of
    `token_scores`.
    """
    return token_scores(params, config, tokens, None, hooks=hooks, cache=cache, chunk=chunk).nll


def token_kl(
    params: Params,
    config: ModelConfig,
    hidden: Float[Array, "b t width"],
    tokens: Integer[Array, "b t"],
    hooks: Hooks = Hooks(),  # noqa: B008
    chunk: int = 256,
) -> Float[Array, "b t"]:
    """Kullback-Leibler divergence of the predictions with `hooks` from those of `hidden`.

    KL(p || q) after every token, in nats, p from `hidden` and q with hooks: the loss of
    self-distillation of a quantized model (Liu et al. 2023, LLM-QAT, arXiv 2305.17888). In fp32.
    Gradients reach the closures of the hooks; logits are computed again for them, not stored.

    Args:
        params: the tree of `init_params`, of both.
        config: static.
        hidden: of `forward` on the tokens without hooks.
        tokens: texts.
        hooks: as for `forward`.
        chunk: tokens per step; static.

    Raises:
        ValueError: `hidden` is not of these tokens, or `chunk` not a whole number of at least 1.
    """
    own = forward(params, config, tokens, hooks=hooks).hidden
    if hidden.shape != own.shape:
        raise ValueError(f"hidden must have shape {own.shape}, got {hidden.shape}.")

    def kl(exact: Array, own: Array) -> Array:
        return _divergence(*(jax.nn.log_softmax(logits(params, h)) for h in (exact, own)))

    return _by_chunks(kl, chunk, hidden, own)


def _divergence(p: Float[Array, "... v"], q: Float[Array, "... v"]) -> Float[Array, "..."]:
    """KL(p || q) of log-probabilities: the sum of exp(q) - exp(p) - exp(p) (q - p).

    Its first two terms sum to zero, but with them no summand is negative, and errors in the
    normalization of p or q, from fp32 sums over the vocabulary, enter only squared.
    """
    d = q - p
    above = d > 0
    larger = jnp.exp(jnp.where(above, q, p))
    change = jnp.expm1(jnp.where(above, -d, d))  # the smaller over the larger, less one
    return jnp.sum(larger * jnp.where(above, -change - (1 + change) * d, change - d), axis=-1)


def _by_chunks(f: Callable[..., Any], chunk: int, *parts: Array) -> Any:
    """`f` on rows of the parts [b, t, ...], `chunk` at a time: arrays [b, t]."""
    batch, length = parts[0].shape[:2]
    total = batch * length
    chunk = min(check_positive("chunk", chunk), total)
    steps = -(-total // chunk)

    def split(part: Array) -> Array:
        rows = part.reshape(total, *part.shape[2:])
        pads = [(0, steps * chunk - total), *[(0, 0)] * (rows.ndim - 1)]
        return jnp.pad(rows, pads).reshape(steps, chunk, *rows.shape[1:])

    again = jax.checkpoint(f)  # so that gradients keep no logits
    values = jax.lax.map(lambda rows: again(*rows), tuple(map(split, parts)))
    return jax.tree.map(lambda x: x.reshape(-1)[:total].reshape(batch, length), values)
