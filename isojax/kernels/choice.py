"""Which of its implementations an operation takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from isojax._core.checks import check_choice

IMPLEMENTATIONS = (None, "xla", "triton", "interpret")
OLDEST = 8.0  # compute capability that Triton needs


def choose(
    implementation: str | None,
    unsupported: str,
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    *args: Any,
) -> Any:
    """Apply one of the two to `args`.

    None takes `kernel` where the program comes to run on an NVIDIA GPU of compute capability 8.0
    or more, and `reference` elsewhere and for unsupported arguments.

    Args:
        implementation: None, `xla`, `triton`, or `interpret`: the Triton kernel by the interpreter
            of Pallas, on any platform, for tests.
        unsupported: what of the arguments the kernel does not support; empty if nothing.
        kernel: called with `interpret=` besides.
        reference: the same in plain JAX.
        *args: pytrees of arrays.

    Raises:
        ValueError: `implementation` is none of these, or the kernel was asked for and does not
            support the arguments.
    """
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    if implementation in ("triton", "interpret"):
        if unsupported:
            raise ValueError(f"implementation {implementation!r} supports {unsupported}")
        return kernel(*args, interpret=implementation == "interpret")
    if implementation == "xla" or unsupported or _old_gpu():
        return reference(*args)
    return lax.platform_dependent(
        *args, cuda=lambda *args: kernel(*args, interpret=False), default=reference
    )


def _old_gpu() -> bool:
    if jax.default_backend() != "gpu":
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    # those of AMD are no numbers, such as gfx942, and platform_dependent sees to them
    return capability.replace(".", "", 1).isdigit() and float(capability) < OLDEST
