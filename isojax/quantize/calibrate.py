"""Statistics of calibration texts: one pass over the model, a layer at a time."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isojax import learn
from isojax._core.checks import check_positive
from isojax.models import LanguageModel, ModelConfig
from isojax.models.decoder import run_layer
from isojax.models.inputs import check_tokens
from isojax.models.rotate import fold_layer
from isojax.quantize.plan import Plan
from isojax.quantize.quantized import layer_of
from isojax.quantize.stats import Stats, finish, load_stats, needed, write_layer

SAMPLES = 8192  # tokens to keep vectors of


def calibrate(
    model: LanguageModel,
    windows: Any,
    plan: Plan | Sequence[Plan],
    *,
    samples: int = SAMPLES,
    cache: str | Path | None = None,
) -> Stats:
    """What a plan, or several, are fitted on: sums over all windows, and vectors of some.

    Layers are read one after the other, every window through one before the next, and what passes
    between them lies on disk: memory does not grow with the number of windows.

    Args:
        model: the model as it is.
        windows: token numbers [n, t].
        plan: what is to be fitted; nothing else is kept.
        samples: tokens whose vectors are kept: those of whole windows, evenly spaced, at least one.
        cache: a folder in which statistics are kept, by model, windows and what is asked for, and
            from which they are read where they are there, a part at a time.

    Raises:
        ValueError: there are no windows, a token is out of range, or a plan names a layer that
            there is not.
    """
    windows = np.asarray(windows)
    check_tokens(model.config, windows, least=2)
    plans = [plan] if isinstance(plan, Plan) else list(plan)
    number = model.config.num_hidden_layers
    wanted = [
        tuple(sorted(set().union(*(needed(_parts(p, i, number)) for p in plans))))
        for i in range(number)
    ]
    if not any(wanted):
        return Stats(({},) * number)
    params, config = model.params, model.config
    size = check_positive("samples", samples) // windows.shape[1]
    kept = np.linspace(0, len(windows) - 1, min(max(size, 1), len(windows))).round()
    kept = set(kept.astype(int).tolist())
    if cache is None:
        return Stats(tuple(_layers(params, config, windows, wanted, kept)))
    folder = Path(cache) / _fingerprint(params, config, windows, wanted, sorted(kept))
    if not folder.exists():
        Path(cache).mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(suffix=".partial", dir=cache))
        found = _layers(params, config, windows, wanted, kept)
        for i, layer in enumerate(found):
            write_layer(partial, i, layer)
        finish(partial, folder, number)
    return load_stats(folder)


def _layers(
    params: Any, config: ModelConfig, windows: np.ndarray, wanted: list[Any], kept: set[int]
) -> Any:
    """The statistics of each layer in turn."""
    last = max(i for i, names in enumerate(wanted) if names)
    with tempfile.TemporaryDirectory(prefix="isojax-") as folder:
        dtype = np.dtype(params["embedding"].dtype)
        streams = [Path(folder) / f"{i}.npy" for i in range(len(windows))]
        for ids, path in zip(windows, streams, strict=True):
            np.save(path, np.asarray(params["embedding"][jnp.asarray(ids)])[None])
        for i, names in enumerate(wanted):
            if i > last:
                yield {}
                continue
            layer = fold_layer(layer_of(params["layers"], i))
            moments = tuple(n.partition(":")[2] for n in names if n.startswith("moment"))
            samples = tuple(n.partition(":")[2] for n in names if n.startswith("samples"))
            totals: dict[str, Array] = {}
            seen: dict[str, list[np.ndarray]] = {kind: [] for kind in samples}
            for number, path in enumerate(streams):
                keep = samples if number in kept else ()
                x = jnp.asarray(np.load(path).view(dtype))  # files do not know bfloat16
                x, totals, captured = _step(layer, config, x, totals, moments, keep)
                np.save(path, np.asarray(x))
                for kind in keep:
                    seen[kind].append(np.asarray(captured[kind]))
            count = windows.size
            found = {f"moment:{kind}": np.asarray(total) / count for kind, total in totals.items()}
            yield found | {f"samples:{kind}": np.concatenate(xs) for kind, xs in seen.items()}


@functools.partial(jax.jit, static_argnames=("config", "moments", "samples"), donate_argnums=(2, 3))
def _step(
    layer: Any,
    config: ModelConfig,
    x: Float[Array, "1 t d"],
    totals: dict[str, Array],
    moments: tuple[str, ...],
    samples: tuple[str, ...],
) -> tuple[Float[Array, "1 t d"], dict[str, Array], dict[str, Array]]:
    """A window through a layer: the stream behind it, sums so far, and vectors that are kept."""
    x, seen = run_layer(layer, config, x, capture=tuple(dict.fromkeys(moments + samples)))
    sums = {kind: _gram(seen[kind], config) for kind in moments}
    totals = {k: totals[k] + v if k in totals else v for k, v in sums.items()}
    return x, totals, {kind: seen[kind] for kind in samples}


def _gram(x: Array, config: ModelConfig) -> Float[Array, "*g d d"]:
    """Sums of x^T x; of queries, over those that read each key head, and a mean over these."""
    if x.ndim == 3:
        return learn.gram(x).total
    groups = config.num_key_value_heads
    by_head = x.reshape(-1, groups, x.shape[2] // groups, x.shape[3]).swapaxes(0, 1)
    return jax.vmap(lambda x: learn.gram(x).total)(by_head) / by_head.shape[2]


def _parts(plan: Plan, layer: int, layers: int) -> dict[str, Any]:
    """What stands in a layer, and what the residual stream of all is turned by."""
    turn = plan.whole("residual")
    return plan.layer(layer, layers) | ({} if turn is None else {"residual": turn})


def _fingerprint(params: Any, config: Any, windows: np.ndarray, *rest: Any) -> str:
    """A name for statistics: model, texts and what is asked for."""
    print_ = hashlib.sha256(repr((config, rest)).encode())
    print_.update(windows.tobytes())
    for leaf in jax.tree.leaves(params):
        print_.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return print_.hexdigest()[:16]
