"""The choice of the implementation of an operation: plain JAX, or a kernel registered for it.

An operation is a verb of `Codec` or `Transform`. Its plain JAX is complete. A kernel is a module
that is imported where it may run. It has two functions: `unsupported(*args, **options) -> str` says
which arguments it does not support, `kernel(*args, interpret, **options)` computes the result.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from isojax._core.checks import check_choice

IMPLEMENTATIONS = (None, "xla", "triton", "interpret")
OLDEST = 8.0  # compute capability that Triton needs

_KERNELS: dict[str, Callable[[], Any]] = {}
_PLAIN = contextvars.ContextVar("plain", default=False)  # inside a call with "xla"


def register(operation: str, load: Callable[[], Any]) -> None:
    """Register the kernel of an operation; `load` imports its module."""
    _KERNELS[operation] = load


def run(
    operation: str,
    implementation: str | None,
    reference: Callable[..., Any],
    *args: Any,
    **options: Any,
) -> Any:
    """The result of `operation` on `args`, by the requested implementation.

    None takes the kernel where the program is compiled for an NVIDIA GPU of compute capability 8.0
    or later and the kernel supports the arguments, else `reference`. Derivatives of all orders,
    forward and reverse, are those of `reference`.

    Args:
        operation: its name.
        implementation: None, `xla` for plain JAX, `triton`, or `interpret`: the Triton kernel by
            the interpreter of Pallas, on any platform, for tests.
        reference: the plain JAX, of `args`.
        *args: pytrees of arrays.
        **options: static arguments of the kernel.

    Raises:
        ValueError: `implementation` is none of these, or is a kernel that does not support the
            arguments or cannot run here; names what is allowed.
    """
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    explicit = implementation in ("triton", "interpret")
    if implementation == "xla":
        token = _PLAIN.set(True)
        try:
            return reference(*args)
        finally:
            _PLAIN.reset(token)
    if not (explicit or _on_gpu()):
        return reference(*args)

    def refuse(why: str) -> Any:
        if explicit:
            raise ValueError(f"implementation {implementation!r} of {operation} {why}")
        return reference(*args)

    if operation not in _KERNELS:
        return refuse("does not exist; allowed are None and 'xla'.")
    try:
        module = _KERNELS[operation]()
    except ImportError as error:
        return refuse(f"needs Pallas with Triton ({error}); allowed are None and 'xla'.")
    if lacking := module.unsupported(*args, **options):
        return refuse(f"supports {lacking}")
    if implementation == "triton" and not _on_gpu():
        return refuse(
            f"needs an NVIDIA GPU of compute capability {OLDEST} or later, got "
            f"{jax.default_backend()}; allowed are None, 'xla' and 'interpret'."
        )
    kernel = functools.partial(module.kernel, interpret=implementation == "interpret", **options)
    if explicit:
        return _with_derivative(kernel, reference)(*args)
    cuda = _with_derivative(kernel, reference)
    return lax.platform_dependent(*args, cuda=cuda, default=reference)


def _with_derivative(
    kernel: Callable[..., Any], reference: Callable[..., Any]
) -> Callable[..., Any]:
    """`kernel` with the derivatives of `reference`."""
    function = jax.custom_jvp(lambda *args: kernel(*args))

    @function.defjvp
    def jvp(primals: Any, tangents: Any) -> Any:
        return function(*primals), jax.jvp(reference, primals, tangents)[1]

    return function


def _on_gpu() -> bool:
    """Whether the traced program may run on a GPU with kernels: a local or a described one."""
    if _PLAIN.get():
        return False
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        return described.platform in ("gpu", "cuda")
    if jax.default_backend() != "gpu":
        return False
    capability = _capability()
    # capabilities of AMD are no numbers (gfx942); platform_dependent handles them
    return not capability.replace(".", "", 1).isdigit() or float(capability) >= OLDEST


def on_hopper() -> bool:
    """Whether the traced program is for a GPU of compute capability 9, with the largest tiles."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        return any(name in described.device_kind for name in ("H100", "H200", "H20"))
    return jax.default_backend() == "gpu" and _capability().startswith("9.")


def _capability() -> str:
    return str(getattr(jax.devices()[0], "compute_capability", ""))
