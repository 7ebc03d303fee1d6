"""Learning by gradient descent: any parameters, any loss, in one `scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from isojax._core.checks import check_divides, check_not_empty, check_positive

_P = TypeVar("_P")


def fit(
    loss: Callable[[_P, Array], Array],
    init: _P,
    optimizer: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    steps: int,
    checks: int = 1,
    objective: Callable[[_P], Array] | None = None,
    callback: Callable[[Array, Array], None] | None = None,
) -> tuple[_P, Float[Array, "steps"]]:
    """Minimise `loss` from `init`; return the best parameters seen, and the loss of each step.

    Parameters are compared by `objective`, at the start and then `checks` times, evenly spaced,
    the last time at the end. So the result is never worse by it than `init`, even where the
    descent diverges; parameters whose objective is NaN are never returned.

    Not compiled here: wrap it in `jax.jit`, in `jax.vmap` over keys, starts, learning rates or
    weights of the loss, or in both.

    Args:
        loss: `loss(params, key)`, a scalar. The key is new in every step, for a `minibatch`, noise,
            or nothing.
        init: the start; a pytree of floating arrays. Arrays that are not learned belong in the
            closure of the loss.
        optimizer: of Optax, or `stiefel` of one for the entries of `Dense`.
        key: split over the steps.
        steps: gradient steps.
        checks: a divisor of `steps`.
        objective: criterion for the result, such as the loss on all samples; by default the loss
            with one key, the same for all parameters.
        callback: called on the host with (steps done, objective) at each check, for progress.

    Example:
        Axes after a Hadamard transform, for 32 seeds and 4 learning rates in one program:

        >>> def learn(key, rate):
        ...     start = hadamard(key, 128)
        ...     def loss(turn, key):
        ...         return quantization_error(start @ turn, minibatch(key, x, 256), absmax(4))
        ...     turn, trace = fit(loss, cayley(None, 128), optax.adam(rate), key=key, steps=500)
        ...     return start @ turn, trace
        >>> seeds = jax.vmap(jax.vmap(learn, (None, 0)), (0, None))
        >>> learned, trace = jax.jit(seeds)(jax.random.split(key, 32), jnp.geomspace(1e-3, 3e-2, 4))

    Raises:
        ValueError: `steps` is not a whole number of at least 1, or `checks` does not divide it.
    """
    span = check_positive("steps", steps) // check_divides("checks", checks, "steps", steps)
    step_key, fixed = jax.random.split(key)
    judge = objective if objective is not None else lambda params: loss(params, fixed)

    def step(carry: Any, number: Array) -> Any:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(step_key, number))
        with jax.numpy_dtype_promotion("standard"):  # for the step counter of optax
            updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    def check(carry: Any, numbers: Array) -> Any:
        learner, best, lowest = carry
        learner, values = jax.lax.scan(step, learner, numbers)
        value = judge(learner[0])
        if callback is not None:
            jax.debug.callback(callback, numbers[-1] + 1, value)
        better = (value < lowest) | (jnp.isnan(lowest) & ~jnp.isnan(value))
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), learner[0], best)
        return (learner, best, jnp.where(better, value, lowest)), values

    first: Any = init
    start = (first, optimizer.init(first)), first, judge(init)
    numbers = jnp.arange(steps).reshape(checks, span)
    (_, best, _), trace = jax.lax.scan(check, start, numbers)
    return best, trace.reshape(steps)


def minibatch(key: Key[Array, ""], x: Float[Array, "n *rest"], size: int) -> Array:
    """`size` rows of `x`, drawn with replacement: the cost does not depend on the number of rows.

    Raises:
        ValueError: `size` is not a whole number of at least 1, or `x` is empty.
    """
    check_not_empty("x", x)
    return x[jax.random.randint(key, (check_positive("size", size),), 0, len(x))]
