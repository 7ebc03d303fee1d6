"""An independent float64 oracle of the statistics of `llama-perplexity --kl-divergence`.

Written from the formulas of llama.cpp's tools/perplexity/perplexity.cpp (read at 050fc7f). Base is
p_base, the other model p, y the right token: nll = -log p(y), kl = KL(p_base || p) in nats,
dp = p(y) - p_base(y) in [-1, 1] (llama.cpp prints per cent), same_top: both first maxima agree.

llama.cpp differs from this oracle, which is exact and counts every row:

- Windows of n_ctx tokens count positions n_ctx // 2 .. n_ctx - 2 only, so n_ctx - 1 - n_ctx // 2
  tokens each (255 of 512). Windows do not overlap, the incomplete last one is dropped, and where
  the model adds BOS, BOS replaces (does not precede) the first token of each window.
- Base log-probabilities are stored in 16 bits: nearest of 65536 even steps from
  max(min logit, max logit - 16) to max logit, a step of at most 16 / 65535 = 2.4e-4 nats. They are
  not normalized again. Lower logits rise to the floor, so nll_base of a token is at most
  16 + logsumexp(logits - max). The other model is not quantized and has no floor.
- kl leaves out every token with log p_base <= -16 (those raised to the floor are among them, up to
  rounding), so kl may be slightly below 0, and identical models do not give exactly 0.
- Ties go to the lowest index, as here, but base logits within one step may become ties.
- Logits, exp, nll, kl per token and percentiles are float32; sums are float64.
- Percentiles are linear between order statistics at fraction * (n - 1), numpy's default, but
  fraction and position are float32; the median is the usual one.
- Standard errors take tokens as independent, are 0 up to 10 tokens (same_top's excepted, the
  covariance below 10), and that of a zero rms_dp is NaN (0 here). No final statistics are printed
  below 100 tokens.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistics = dict[str, NDArray]

PERCENTILES = {"kl_median": 50, "kl_p90": 90, "kl_p95": 95, "kl_p99": 99, "kl_p999": 99.9}


def token_statistics(base_logits: ArrayLike, logits: ArrayLike, targets: ArrayLike) -> Statistics:
    """Compare logits [n, vocab] to base_logits [n, vocab] at targets [n], per token.

    A logit of -inf is a probability of 0: no share of kl in base, kl = inf in the other alone.
    """
    targets = np.asarray(targets)
    rows = np.arange(len(targets))
    log_probs = []
    for x in (base_logits, logits):
        x = np.asarray(x, np.float64)
        x = x - x.max(axis=-1, keepdims=True)
        log_probs.append(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))
    base, other = log_probs
    with np.errstate(invalid="ignore"):  # 0 * inf and inf - inf, where p_base is 0
        terms = np.exp(base) * (base - other)
    log_p_base, log_p = base[rows, targets], other[rows, targets]
    return {
        "nll_base": -log_p_base,
        "nll": -log_p,
        "kl": np.where(np.exp(base) > 0, terms, 0.0).sum(axis=-1),
        "same_top": base.argmax(axis=-1) == other.argmax(axis=-1),
        "dp": np.exp(log_p) - np.exp(log_p_base),
    }


def summarize(statistics: Statistics, *, errors: bool = False) -> dict[str, float]:
    """Summarize token_statistics: means, percentiles of kl, share of same_top, rms of dp.

    With errors, also nll_difference = nll - nll_base (ln PPL / PPL_base), paired by token, and the
    standard errors `<name>_se`: sqrt(mean square deviation / (n - 1)), for rms_dp that of the
    mean of dp^2 over 2 rms_dp.
    """
    nll_base, nll, kl = (statistics[name] for name in ("nll_base", "nll", "kl"))
    squared = statistics["dp"] ** 2
    means = {"nll_base": nll_base, "nll": nll, "kl_mean": kl, "same_top1": statistics["same_top"]}
    summary = {name: float(np.mean(x)) for name, x in means.items()}
    summary |= {name: float(np.percentile(kl, q)) for name, q in PERCENTILES.items()}
    summary |= {"kl_max": float(np.max(kl)), "rms_dp": float(np.sqrt(np.mean(squared)))}
    if errors:
        summary["nll_difference"] = summary["nll"] - summary["nll_base"]
        means |= {"nll_difference": nll - nll_base, "rms_dp": squared}
        summary |= {
            f"{name}_se": float(np.std(x, ddof=1)) / len(x) ** 0.5 for name, x in means.items()
        }
        summary["rms_dp_se"] /= 2 * summary["rms_dp"] or 1.0
    return summary
