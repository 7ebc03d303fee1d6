"""Statistics of calibration texts: one pass over the model, layer by layer."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from isojax import learn
from isojax._core.checks import check_positive
from isojax.models import LanguageModel, ModelConfig
from isojax.models.decoder import run_layer
from isojax.models.inputs import check_tokens
from isojax.models.rotate import fold_layer
from isojax.quantize.check import check_plan
from isojax.quantize.check_learned import check_learned
from isojax.quantize.learned import learned_stats
from isojax.quantize.parts import PLACES, Weight, is_learned
from isojax.quantize.plan import Plan
from isojax.quantize.quantize import begin, one_layer, single
from isojax.quantize.quantized import Quantized, layer_of
from isojax.quantize.stats import WHOLE, Stats, finish, load_stats, needed, write_layer
from isojax.quantize.texts import LENGTH, token_windows

SAMPLES = 8192  # tokens whose vectors are kept


def calibrate(
    model: LanguageModel,
    texts: Any,
    plan: Plan | Sequence[Plan],
    *,
    key: Key[Array, ""] | None = None,
    length: int = LENGTH,
    samples: int = SAMPLES,
    cache: str | Path | None = None,
) -> Stats:
    """The statistics that one or several plans are fitted on: sums over all windows, some vectors.

    All windows pass through one layer before the next, and activations between layers lie on disk:
    memory does not grow with the number of windows. With `inputs=quantized` in the plan, each layer
    is quantized before the next one runs. `learned` rotations and `learned_scales` are learned
    first, see `isojax.quantize.learned`.

    Args:
        model: the unquantized model.
        texts: windows of token ids [n, t], or strings; see `token_windows`.
        plan: the plans to be fitted; only their statistics are kept.
        key: that of `quantize`, for a plan that is `keyed`.
        length: tokens per window, for texts that are not windows.
        samples: tokens whose vectors are kept: those of whole windows, evenly spaced, at least one.
        cache: a folder that keeps statistics by model, windows and requested statistics. Existing
            ones are read from it, part by part.

    Raises:
        ValueError: there are no windows, a token is out of range, a plan names a missing layer,
            or there are several plans or no key where a plan is `keyed`.
    """
    windows = np.asarray(token_windows(model.tokenizer, texts, length))
    check_tokens(model.config, windows, least=2)
    windows = windows.astype(np.int32)
    plans = [plan] if isinstance(plan, Plan) else list(plan)
    number = model.config.num_hidden_layers
    for each in plans:
        check_plan(each, number)
    drawn = any(map(keyed, plans))
    if drawn and (key is None or len(plans) > 1):
        raise ValueError(
            "statistics of a plan with inputs=quantized or learned coordinates depend on its "
            f"key: give only that plan, and a key; got {len(plans)} plans and key {key}."
        )
    wanted = [
        tuple(sorted(set().union(*(needed(_parts(p, i, number)) for p in plans))))
        for i in range(number)
    ]
    if not any(wanted) and not drawn:
        return Stats(({},) * number)
    size = check_positive("samples", samples) // windows.shape[1]
    kept = np.linspace(0, len(windows) - 1, min(max(size, 1), len(windows))).round()
    kept = set(kept.astype(int).tolist())

    def found() -> tuple[Iterator[Mapping[str, Any]], Mapping[str, Any]]:
        learned = _learned(key, model, windows, plans[0])
        return _layers(key, model, windows, plans[0], wanted, kept, learned), learned.whole

    if cache is None:
        every, whole = found()
        return Stats(tuple(every), whole)
    about: tuple[Any, ...] = ()
    if key is not None:  # what is learned depends on arguments that a plan need not name
        stages = check_learned(plans[0], number).stages
        given = [sorted(stage.arguments.items()) for stage in stages]
        about = str(plans[0]), np.asarray(jax.random.key_data(key)).tolist(), str(given)
    folder = Path(cache) / _fingerprint(
        model.params, model.config, windows, wanted, sorted(kept), *about
    )
    if not folder.exists():
        Path(cache).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(suffix=".partial", dir=cache) as partial:
            every, whole = found()
            for i, layer in enumerate(every):
                write_layer(Path(partial), str(i), layer)
            write_layer(Path(partial), WHOLE, whole)
            finish(Path(partial), folder, number)
    return load_stats(folder)


def keyed(plan: Plan) -> bool:
    """Whether the statistics of a plan depend on its random key."""
    return _behind(plan) or any(is_learned(p) for parts in plan.parts.values() for p in parts)


def _behind(plan: Plan) -> bool:
    """Whether statistics are taken after quantized layers."""
    every = [part for parts in plan.parts.values() for part in parts]
    return any(isinstance(part, Weight) and part.inputs != "exact" for part in every)


def _learned(key: Any, model: LanguageModel, windows: np.ndarray, plan: Plan) -> Stats:
    if not keyed(plan):
        return Stats(({},) * model.config.num_hidden_layers)
    return learned_stats(jax.random.fold_in(key, len(PLACES)), model, windows, plan)


def _layers(
    key: Any,
    model: LanguageModel,
    windows: np.ndarray,
    plan: Plan,
    wanted: list[Any],
    kept: set[int],
    learned: Stats,
) -> Iterator[Mapping[str, Any]]:
    """The statistics of each layer, one after the other."""
    params, config = model.params, model.config
    last = max((i for i, names in enumerate(wanted) if names), default=-1)
    behind = _behind(plan)
    turn = plan.whole("residual")
    if behind and turn is not None and turn.coordinates.needs and not is_learned(turn):
        raise ValueError(
            "residual must be drawn or learned with inputs=quantized, since layers are quantized "
            f"before the last is read; got {turn}."
        )
    keys, base = begin(key, model, plan, learned) if behind else ({}, None)
    with tempfile.TemporaryDirectory(prefix="isojax-") as folder:
        dtype = np.dtype(params["embedding"].dtype)
        streams = [Path(folder) / f"{i}.npy" for i in range(len(windows))]
        for ids, path in zip(windows, streams, strict=True):
            np.save(path, np.asarray(params["embedding"][jnp.asarray(ids)])[None])
        for i, names in enumerate(wanted):
            if i > last:
                yield learned.layers[i]
                continue
            layer = fold_layer(layer_of(params["layers"], i))
            sums = tuple(n for n in names if n.startswith(("moment:", "mean:")))
            samples = tuple(n.partition(":")[2] for n in names if n.startswith("samples"))
            totals: dict[str, Array] = {}
            seen: dict[str, list[np.ndarray]] = {kind: [] for kind in samples}
            for number, path in enumerate(streams):
                keep = samples if number in kept else ()
                x = jnp.asarray(np.load(path).view(dtype))  # .npy files lack bfloat16
                x, totals, captured = _step(layer, config, x, totals, sums, keep)
                if not behind:
                    np.save(path, np.asarray(x))
                for kind in keep:
                    seen[kind].append(np.asarray(captured[kind]))
            count = windows.size
            found = {name: np.asarray(total) / count for name, total in totals.items()}
            found |= {f"samples:{kind}": np.concatenate(xs) for kind, xs in seen.items()}
            found |= learned.layers[i]
            if base is not None and i < last:
                one = single(base, i, one_layer(keys, base, plan, i, found))
                for path in streams:
                    x = jnp.asarray(np.load(path).view(dtype))
                    np.save(path, np.asarray(_through(one, x)))
            yield found


@jax.jit
def _through(one: Quantized, x: Float[Array, "1 t d"]) -> Float[Array, "1 t d"]:
    """One window through a quantized layer, in the coordinates of the exact model."""
    turn = one.shared.get("residual")
    x = x if turn is None else turn.apply(x)
    x, _ = run_layer(layer_of(one.params["layers"], 0), one.config, x, hooks=one.hooks)
    return x if turn is None else turn.inverse.apply(x)


@functools.partial(jax.jit, static_argnames=("config", "sums", "samples"), donate_argnums=(2, 3))
def _step(
    layer: Any,
    config: ModelConfig,
    x: Float[Array, "1 t d"],
    totals: dict[str, Array],
    sums: tuple[str, ...],
    samples: tuple[str, ...],
) -> tuple[Float[Array, "1 t d"], dict[str, Array], dict[str, Array]]:
    """One window through a layer: the residual stream after it, the sums, and the kept vectors."""
    named = {name: name.partition(":")[::2] for name in sums}
    capture = (*(kind for _, kind in named.values()), *samples)
    x, seen = run_layer(layer, config, x, capture=tuple(dict.fromkeys(capture)))
    found = {name: _sum(of, seen[kind], config) for name, (of, kind) in named.items()}
    totals = {name: totals[name] + v if name in totals else v for name, v in found.items()}
    return x, totals, {kind: seen[kind] for kind in samples}


def _sum(of: str, x: Array, config: ModelConfig) -> Float[Array, "..."]:
    """Sums of x or x^T x; for queries, means over the query heads of each key head."""
    if of == "mean":
        return x.astype(jnp.float32).sum((0, 1))
    if x.ndim == 3:
        return learn.gram(x).total
    groups = config.num_key_value_heads
    by_head = x.reshape(-1, groups, x.shape[2] // groups, x.shape[3]).swapaxes(0, 1)
    return jax.vmap(lambda x: learn.gram(x).total)(by_head) / by_head.shape[2]


def _parts(plan: Plan, layer: int, layers: int) -> dict[str, Any]:
    """The parts of a plan in one layer, with that of the residual stream."""
    turn = plan.whole("residual")
    return plan.layer(layer, layers) | ({} if turn is None else {"residual": turn})


def _fingerprint(params: Any, config: Any, windows: np.ndarray, *rest: Any) -> str:
    """A hash of model, texts and requested statistics."""
    print_ = hashlib.sha256(repr((config, windows.shape, rest)).encode())
    print_.update(windows.tobytes())
    for leaf in jax.tree.leaves(params):
        print_.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return print_.hexdigest()[:16]
