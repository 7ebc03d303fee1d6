"""An independent float64 oracle of the key/value cache quantizers, written from the definition."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Change = Callable[[int, Array, Array, Array], tuple[Array, Array, Mask, Mask]]

OFFSETS, SCALES = ("none", "channel_pre_rope", "channel_post_rope"), ("none", "channel")
ROPES = ("after", "before")
GAINS = ("vector", "unbiased", "none")
CODEBOOKS = ("sphere", "gaussian", "fitted", "fitted_channel", "minmax", "minmax_channel")


def half(x: Array) -> Array:
    """Round to float16 and return as float64."""
    return np.asarray(x).astype(np.float16).astype(np.float64)


def rotary(x: Array, theta: float | None, sign: int = 1) -> Array:
    """RoPE of x [..., T, d] at 0..T-1, i with i + d/2; sign=-1 undoes it, theta None is none."""
    if theta is None:
        return x
    length, d = x.shape[-2:]
    angle = np.arange(length)[:, None] * theta ** (-2.0 * np.arange(d // 2) / d)
    cos, sin = np.cos(angle), sign * np.sin(angle)
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def lloyd_max(pdf: Callable[[Array], Array], limit: float, bits: int) -> Array:
    """Lloyd-Max levels of a symmetric density on [-limit, limit].

    Integrals are Gauss-Legendre over t, z = limit * sin(t), cell by cell; a Newton step solves
    level = centroid, with a plain Lloyd step wherever Newton would disorder the levels.
    """
    count = 2**bits
    nodes, weights = np.polynomial.legendre.leggauss(200)
    # Start from the high-resolution rule: level density ~ pdf^(1/3).
    t = (np.arange(200_000) + 0.5) / 200_000 * np.pi - np.pi / 2
    mass = np.cumsum(np.cbrt(pdf(limit * np.sin(t))) * np.cos(t))
    level = limit * np.sin(np.interp((np.arange(count) + 0.5) / count, mass / mass[-1], t))
    for _ in range(1000):
        inner = (level[1:] + level[:-1]) / 2
        edge = np.arcsin(np.concatenate([[-limit], inner, [limit]]) / limit)
        left, width = edge[:-1, None], np.diff(edge)[:, None]
        at = left + width * (nodes + 1) / 2
        z = limit * np.sin(at)
        w = weights * width / 2 * pdf(z) * limit * np.cos(at)
        total = w.sum(1)
        centroid = (w * z).sum(1) / total
        if np.abs(centroid - level).max() < 1e-14 * limit:
            break
        # d centroid_i / d edge, each inner edge moves by half of either neighbour's motion
        right = pdf(inner) * (inner - centroid[:-1]) / total[:-1] / 2
        lower = pdf(inner) * (centroid[1:] - inner) / total[1:] / 2
        diagonal = np.append(right, 0.0) + np.append(0.0, lower)
        jacobian = np.diag(diagonal - 1) + np.diag(right, 1) + np.diag(lower, -1)
        newton = level + np.linalg.solve(jacobian, level - centroid)
        inside = np.abs(newton).max() < limit and bool(np.all(np.diff(newton) > 0))
        level = newton if inside else centroid
        level = (level - level[::-1]) / 2
    return level


def sphere_levels(e: int, bits: int) -> Array:
    """Levels of one coordinate of a uniform unit vector in R^e."""
    return lloyd_max(lambda z: (1 - z**2) ** ((e - 3) / 2), 1.0, bits)


def gaussian_levels(e: int, bits: int) -> Array:
    """Levels of N(0, 1/e)."""
    return lloyd_max(lambda z: np.exp(-(z**2) / 2), 12.0, bits) / math.sqrt(e)


def nearest(x: Array, levels: Array) -> Array:
    """Nearest of the sorted levels [2^b]; ties go to the lower one."""
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x, side="left")]


def lloyd_max_fit(samples: Array, bits: int) -> Array:
    """1-D k-means levels [2^b] of samples, the best of three starts."""
    x = np.sort(np.asarray(samples, np.float64).ravel())
    total = np.concatenate([[0.0], np.cumsum(x)])
    part = (np.arange(2**bits) + 0.5) / 2**bits
    quantiles, even = np.quantile(x, part), x[0] + (x[-1] - x[0]) * part
    fits = []
    for level in (quantiles, even, (quantiles + even) / 2):
        for _ in range(5000):
            cut = np.searchsorted(x, (level[1:] + level[:-1]) / 2, side="right")
            cut = np.concatenate([[0], cut, [x.size]])
            n = np.diff(cut)
            mean = np.diff(total[cut]) / np.maximum(n, 1)
            new = np.sort(np.where(n > 0, mean, level))
            if np.array_equal(new, level):
                break
            level = new
        fits.append((np.mean((x - nearest(x, level)) ** 2), level))
    return min(fits, key=lambda fit: fit[0])[1]


def centre(
    calibration: Array,
    *,
    offset: str,
    rope: str = "after",
    theta: float | None = None,
    sinks: int = 0,
) -> tuple[Array, Callable[[int], Array]]:
    """What a codec is fitted to [N, d], and the offset [T, d] as a function of T.

    The first `sinks` tokens of each text are left out; the offset is taken from the rest.
    """
    outer = theta if rope == "before" else None
    inner = theta if rope == "after" and offset == "channel_pre_rope" else None
    seen = rotary(np.asarray(calibration, np.float64), outer, -1)
    d = seen.shape[-1]
    mean = rotary(seen, inner, -1)[:, sinks:].reshape(-1, d).mean(0) * (offset != "none")

    def added(length: int) -> Array:
        """The offset at positions 0..length-1, in what the codec sees."""
        return rotary(np.tile(mean, (length, 1)), inner)

    return (seen - added(seen.shape[1]))[:, sinks:].reshape(-1, d), added


def aligned_axes(x: Array, metric: Array, power: float) -> tuple[Array, Array]:
    """Principal axes of x [N, d] in a metric [d, d]: the turn (y = x @ turn) and the way back."""
    value, vector = np.linalg.eigh(np.asarray(metric, np.float64))
    size = np.sqrt((np.maximum(value, 0) + 1e-3 * value.mean()) ** power)
    root, inverse = (vector * size @ vector.T, vector / size @ vector.T)
    axes = np.linalg.eigh(root @ (x.T @ x / len(x)) @ root)[1][:, ::-1]
    return root @ axes, axes.T @ inverse


@functools.cache
def gaussian_distortion(bits: int) -> float:
    """Mean squared error of the Lloyd-Max quantizer of N(0, 1)."""
    level = gaussian_levels(1, bits)
    below = [math.erf(edge / math.sqrt(2)) / 2 for edge in (level[1:] + level[:-1]) / 2]
    return 1 - float(np.diff([-0.5, *below, 0.5]) @ level**2)


def greedy_widths(variance: Array, bits: int) -> list[int]:
    """Bits (0 to 8) of each component, each given where it lowers the distortion most."""
    worth = -np.diff([gaussian_distortion(b) for b in range(9)])  # of the next bit
    widths = [0] * len(variance)
    for _ in range(bits * len(variance)):
        won = [v * worth[w] if w < 8 else 0 for v, w in zip(variance, widths, strict=True)]
        widths[int(np.argmax(won))] += 1
    return widths


def unit_rms(y: Array) -> Array:
    """Each row over its root mean square; rows of zeros are left out."""
    rms = np.sqrt(np.mean(y**2, axis=-1, keepdims=True))
    return (y / np.where(rms > 0, rms, 1))[rms[:, 0] > 0]


def code_by_norm(y: Array, levels: Array, unit: float, gain: str = "vector") -> Array:
    """Code y [T, e] by its float16 size ||y|| / unit and the nearest levels [2^b] or [e, n].

    gain none: no size. unbiased: a size for which <y, y_hat> = <y, y>, for the same codes.
    """
    size = half(np.linalg.norm(y, axis=-1, keepdims=True) / unit)
    if gain == "none":
        size = np.ones_like(size)
    u = y / np.where(size > 0, size, 1)
    rows = np.broadcast_to(levels, (y.shape[1], levels.shape[-1]))
    u_hat = np.stack([nearest(u[:, i], row) for i, row in enumerate(rows)], -1)
    if gain == "unbiased":
        along = np.sum(y * u_hat * size, -1, keepdims=True)
        square = np.sum(y**2, -1, keepdims=True)
        size = half(size * np.where(along > 0, square / np.where(along > 0, along, 1), 1))
    return u_hat * size


def code_by_range(y: Array, bits: int, sparse: float) -> Array:
    """Min-max code along the last axis, the numbers of which share one lo and step."""
    k = math.ceil(sparse * y.shape[-1])
    median = np.median(y, axis=-1, keepdims=True)
    far = np.argsort(-np.abs(y - median), axis=-1, kind="stable")[..., :k]
    trimmed = y.copy()
    np.put_along_axis(trimmed, far, np.broadcast_to(median, far.shape), axis=-1)
    low, high = trimmed.min(-1, keepdims=True), trimmed.max(-1, keepdims=True)
    step, low = half((high - low) / (2**bits - 1)), half(low)
    code = np.clip(np.rint((y - low) / np.where(step > 0, step, 1)), 0, 2**bits - 1)
    out = code * step + low
    worst = np.argsort(-np.abs(out - y), axis=-1, kind="stable")[..., :k]
    np.put_along_axis(out, worst, half(np.take_along_axis(y, worst, -1)), axis=-1)
    return out


def reconstruct(
    x: Array,
    calibration: Array,
    *,
    matrix: Array,
    bits: int,
    codebook: str,
    offset: str = "none",
    scale: str = "none",
    rope: str = "after",
    theta: float | None = None,
    page: int = 1,
    sparse: float = 0.0,
    levels: Array | None = None,
    inverse: Array | None = None,
    gain: str = "vector",
    sinks: int = 0,
) -> Array:
    """What the quantizer gives back for x [T, d], calibrated on texts [n, T', d] from position 0.

    theta is None for values. rope: the codec stands "after" or "before" the rotary embedding; x
    and the result are rotated either way. levels ([2^b], or [e, n] with rows padded by inf)
    replace the oracle's fit. inverse, of the matrix, is its transpose unless given. The first
    `sinks` tokens are kept in float16.
    """
    for given, known in (
        (offset, OFFSETS), (scale, SCALES), (rope, ROPES), (codebook, CODEBOOKS), (gain, GAINS),
    ):  # fmt: skip
        if given not in known or (sparse and "minmax" not in codebook):
            raise ValueError((given, sparse))
    x, matrix = np.asarray(x, np.float64), np.asarray(matrix, np.float64)
    inverse = matrix.T if inverse is None else inverse
    d, e = matrix.shape
    outer = theta if rope == "before" else None  # undone before the codec, applied after it
    fit, added = centre(calibration, offset=offset, rope=rope, theta=theta, sinks=sinks)
    deviation = fit.std(0) if scale == "channel" else np.ones(d)
    deviation = np.where(deviation > 0, deviation, 1.0)
    y = (rotary(x, outer, -1) - added(len(x))) / deviation @ matrix

    if codebook == "minmax":
        y_hat = code_by_range(y, bits, sparse)
    elif codebook == "minmax_channel":
        y_hat, full = y.copy(), len(y) // page * page
        pages = y[:full].reshape(-1, page, e).swapaxes(1, 2)
        y_hat[:full] = code_by_range(pages, bits, sparse).swapaxes(1, 2).reshape(full, e)
    elif codebook in ("sphere", "gaussian"):
        table = sphere_levels(e, bits) if codebook == "sphere" else gaussian_levels(e, bits)
        y_hat = code_by_norm(y, table, 1.0, gain)
    else:
        if levels is None:
            z = fit / deviation @ matrix
            z = z if gain == "none" else unit_rms(z)
            sets = [z] if codebook == "fitted" else list(z.T)
            levels = np.squeeze([lloyd_max_fit(part, bits) for part in sets])
        y_hat = code_by_norm(y, np.asarray(levels, np.float64), math.sqrt(e), gain)

    x_hat = rotary(y_hat @ inverse * deviation + added(len(x)), outer)
    return np.concatenate([half(x[:sinks]), x_hat[sinks:]])


def stored_bytes(
    T: int, d: int, e: int, bits: int, codebook: str, page: int = 1, sparse: float = 0.0
) -> int:
    """Bytes of the codes of T tokens; minmax_channel counts its full pages only."""
    if codebook == "minmax_channel":
        one_set = 4 + 4 * math.ceil(sparse * page)
        return T // page * (page * math.ceil(d * bits / 8) + d * one_set)
    side = 4 + 4 * math.ceil(sparse * e) if codebook == "minmax" else 2
    return T * (math.ceil(e * bits / 8) + side)


def visible(T: int, *, page: int = 1, sinks: int = 0, recent: int = 0) -> Mask:
    """[p, j]: does query p read token j exact (not its code)? Causality is apart."""
    p, j = np.arange(T)[:, None], np.arange(T)[None, :]
    return (j < sinks) | (j > p - recent) | (j >= (p + 1) // page * page)


def attention(
    q: Array, k: Array, v: Array, k_hat: Array, v_hat: Array, exact_k: Mask, exact_v: Mask
) -> Array:
    """Causal grouped attention [T, h*d]; each query reads exact or coded tokens by the masks."""
    T, heads, d = q.shape
    causal = np.tril(np.ones((T, T), bool))
    out = []
    for head in range(heads):
        g = head * k.shape[1] // heads
        logit = np.where(exact_k, q[:, head] @ k[:, g].T, q[:, head] @ k_hat[:, g].T)
        logit = np.where(causal, logit / math.sqrt(d), -np.inf)
        weight = np.exp(logit - logit.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        out.append((weight * exact_v) @ v[:, g] + (weight * ~exact_v) @ v_hat[:, g])
    return np.concatenate(out, axis=-1)


def torch_nll(folder: str | Path, tokens: Sequence[int], change: Change) -> float:
    """Mean nats of tokens[1:] by the model in folder, each layer's attention reading `change`.

    change(layer, q, k, v) -> (k_hat, v_hat, exact_k, exact_v) has q and k after RoPE, all float64
    [T, heads, d], as they come in the changed run.
    """

    def attend(module, query, key, value, attention_mask=None, scaling=None, **_):
        q, k, v = (a[0].transpose(0, 1).double().numpy() for a in (query, key, value))
        if not math.isclose(scaling, q.shape[-1] ** -0.5):
            raise ValueError(f"the model scales its logits by {scaling}")
        out = attention(q, k, v, *change(module.layer_idx, q, k, v))
        return torch.from_numpy(out).to(query.dtype).reshape(1, len(q), q.shape[1], -1), None

    ALL_ATTENTION_FUNCTIONS.register("kv_oracle", attend)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="kv_oracle", local_files_only=True
    ).eval()
    ids = torch.as_tensor(np.array(tokens, dtype=np.int64))
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, ids[1:]))
