"""Quantized linear layers in numpy and torch, fp64, as their papers define them.

Nothing here comes from isojax. For y = x W in coordinates T, codes are made of x T, a scale per
token, and of the rows of (T^-1 W)^T, a scale per output channel.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

RATIOS = np.geomspace(1, 0.01, 100)
READERS = {
    "q_proj": ("q_proj", "k_proj", "v_proj"),
    "o_proj": ("o_proj",),
    "gate_proj": ("gate_proj", "up_proj"),
    "down_proj": ("down_proj",),
}
"""Projections that share an input, by the first of them."""


class Rounded(NamedTuple):
    codes: np.ndarray
    scale: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return self.codes * self.scale


def at_scale(v, scale, bits):
    """Codes -q ... q at given scales, q = 2^(bits-1) - 1."""
    top = 2 ** (bits - 1) - 1
    return np.clip(np.rint(v / scale), -top, top)


def nearest(v, bits, ratios=RATIOS) -> Rounded:
    """A scale per vector, r max|v| / q, with the r of least squared error."""
    scales = ratios * np.abs(v).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
    errors = [((v - at_scale(v, s, bits) * s) ** 2).sum(-1) for s in scales.T[..., None]]
    scale = np.take_along_axis(scales, np.argmin(errors, 0)[:, None], -1)
    return Rounded(at_scale(v, scale, bits), scale)


def gptq(rows, hessian, bits, ratios=RATIOS, damping=0.01) -> Rounded:
    """GPTQ (arXiv 2210.17323), column by column, in order; scales are those of `rows`."""
    w, scale = rows.copy(), nearest(rows, bits, ratios).scale
    damped = hessian + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    codes = np.empty_like(w)
    for j in range(len(hessian)):
        codes[:, j] = at_scale(w[:, j], scale[:, 0], bits)
        error = (w[:, j] - codes[:, j] * scale[:, 0]) / upper[j, j]
        w[:, j + 1 :] -= np.outer(error, upper[j, j + 1 :])
    return Rounded(codes, scale)


def _shared(channels, heads, reduce):
    """A statistic of o_proj's channels, one for all query heads that read a value channel."""
    if heads is None:
        return channels
    by_head = channels.reshape(*heads, -1)
    return np.broadcast_to(reduce(by_head, axis=1, keepdims=True), by_head.shape).ravel()


def balance(x, w, heads=None):
    """T = diag(1/s), s_j = (rms x_j / rms w_j)^(1/2); see `fit`."""
    of_x, of_w = (_shared(m, heads, np.mean) for m in ((x**2).mean(0), (w**2).mean(1)))
    return np.diag((of_w / of_x) ** 0.25)


def smooth(x, w, heads=None, alpha=0.5):
    """T = diag(1/s), s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) (SmoothQuant, equation 4)."""
    of_x, of_w = (_shared(m, heads, np.max) for m in (abs(x).max(0), abs(w).max(1)))
    return np.diag(of_w ** (1 - alpha) / of_x**alpha)


def moments(x, w, damping=0.01):
    """C of the inputs and M = W W^T, each with a share of its mean eigenvalue added to all."""
    both = x.T @ x / len(x), w @ w.T
    return [m + damping * np.trace(m) / len(m) * np.eye(len(m)) for m in both]


def _wush(c, m):
    values, axes = np.linalg.eigh(c)
    root, inverse = ((axes * values**power) @ axes.T for power in (0.5, -0.5))
    squares, u = np.linalg.eigh(root @ m @ root)
    return (inverse @ u * squares**0.25)[:, ::-1]


def wush(x, w, heads=None):
    """T = C^(-1/2) U S^(1/2) (arXiv 2512.00956), S descending; columns have either sign."""
    return _wush(*moments(x, w))


def kron_orders(dim):
    """The two divisors nearest to the root, the smaller first."""
    left = max(n for n in range(1, dim) if dim % n == 0 and n * n <= dim)
    return left, dim // left


def kron_wush(x, w, heads=None):
    """T = kron(P1, P2) of the least |x T| |T^-1 W|, by descent on both factors at once.

    What the objective leaves free is a rotation behind each factor. Here it gives each one diagonal
    second moment on both sides, descending, as WUSH does; columns have either sign.
    """
    orders = kron_orders(len(w))
    c, m = (torch.tensor(a).reshape(orders * 2) for a in moments(x, w))
    logs = [torch.zeros((n, n), dtype=torch.float64, requires_grad=True) for n in orders]
    descent = torch.optim.LBFGS(
        logs, max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def products():  # P1 P1^T and P2 P2^T, positive
        return [torch.matrix_exp(a + a.T) for a in logs]

    def squared(moment, left, right):  # tr(kron(left, right) moment)
        return torch.einsum("iajb,ij,ab->", moment, left, right)

    def loss():
        descent.zero_grad()
        there = products()
        value = squared(c, *there).log() + squared(m, *map(torch.linalg.inv, there)).log()
        value.backward()
        return value

    descent.step(loss)
    both = []
    for other, axes in zip(reversed(products()), ("iajb,ab->ij", "iajb,ij->ab"), strict=True):
        of_c, of_m = torch.einsum(axes, c, other), torch.einsum(axes, m, torch.linalg.inv(other))
        both.append(_wush(of_c.detach().numpy(), of_m.detach().numpy()))
    return np.kron(*both)


FAMILIES = {"balance": balance, "smooth:0.5": smooth, "wush": wush, "kron_wush": kron_wush}
"""(x [n, d], w [d, o], heads) -> T. `heads`: value heads and query heads that read each, where x is
what o_proj reads and scales merge into values."""


def objective(t, x, w):
    """|x T| |T^-1 W|, of damped moments."""
    c, m = moments(x, w)
    back = np.linalg.inv(t)
    return np.sqrt(np.trace(t.T @ c @ t) * np.trace(back @ m @ back.T))


def with_signs_of(t, other):
    """`t` with each column in the direction of that of `other`."""
    return t * np.sign((t * other).sum(0))


class Layer(NamedTuple):
    """A quantized linear layer."""

    transform: np.ndarray
    weight: Rounded
    bits: int
    ratios: np.ndarray

    def __call__(self, x):
        return nearest(x @ self.transform, self.bits, self.ratios).values @ self.weight.values.T


def layer(x, w, t, bits, rounding, ratios=RATIOS) -> Layer:
    """The layer y = x W in coordinates T, calibrated on `x`."""
    rows = np.linalg.solve(t, w).T
    xt = x @ t
    if rounding == "gptq":
        return Layer(t, gptq(rows, xt.T @ xt / len(x), bits, ratios), bits, ratios)
    return Layer(t, nearest(rows, bits, ratios), bits, ratios)


def projections(model) -> dict[tuple[int, str], torch.nn.Linear]:
    """All projections of a transformers model, by layer and name."""
    return {
        (number, name): getattr(part, name)
        for number, block in enumerate(model.model.layers)
        for part in (block.self_attn, block.mlp)
        for name in sum(READERS.values(), ())
        if hasattr(part, name)
    }


@torch.no_grad()
def inputs(model, tokens) -> dict[tuple[int, str], np.ndarray]:
    """Inputs [tokens, d] of q_proj, o_proj, gate_proj and down_proj, by layer and name."""
    seen, handles = {}, []
    for place, linear in projections(model).items():
        if place[1] in READERS:

            def keep(_, args, place=place):
                seen[place] = args[0].flatten(0, -2).numpy()

            handles.append(linear.register_forward_pre_hook(keep))
    model(torch.tensor(tokens))
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def nll(model, tokens, layers: Mapping[tuple[int, str], Layer] | None = None) -> np.ndarray:
    """Nats of each token but the first [n, t - 1], with projections replaced by quantized ones."""
    handles = []
    for place, quantized in (layers or {}).items():

        def run(linear, args, _, quantized=quantized):
            y = torch.tensor(quantized(args[0].flatten(0, -2).numpy()))
            y = y.reshape(*args[0].shape[:-1], -1)
            return y if linear.bias is None else y + linear.bias

        handles.append(projections(model)[place].register_forward_hook(run))
    tokens = torch.tensor(tokens)
    logits = model(tokens).logits[:, :-1].transpose(1, 2)
    for handle in handles:
        handle.remove()
    return torch.nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none").numpy()


@torch.no_grad()
def sampled(model, windows, length) -> np.ndarray:
    """Tokens [windows, length] drawn from what a model predicts."""
    tokens = torch.randint(0, model.config.vocab_size, (windows, 1))
    while tokens.shape[1] < length:
        chances = model(tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1)], 1)
    return tokens.numpy()


def weights(model) -> dict[tuple[int, str], np.ndarray]:
    """Weights [in, out] of all projections, by layer and name."""
    return {place: p.weight.detach().numpy().T for place, p in projections(model).items()}
