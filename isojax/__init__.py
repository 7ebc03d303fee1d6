"""isojax: when you quantize an LLM, should you rotate its coordinates or align them?

    codec = Codec(transforms.haar(key, 576), quantizers.absmax(3))
    metrics.nmse(x, codec.roundtrip(x))

The algebra is here and imports nothing but jax and numpy. `isojax.sweep` and `isojax.report` run
and record experiments; `isojax.models` and `isojax.data` bring language models and texts.
"""

from isojax import kernels, metrics, quantizers, transforms
from isojax._core.implementation import IMPLEMENTATIONS
from isojax._core.pytree import pytree, static
from isojax.codec import Codec
from isojax.quantizers.base import Quantizer
from isojax.transforms.base import Transform

__all__ = [
    "Codec",
    "IMPLEMENTATIONS",
    "Quantizer",
    "Transform",
    "kernels",
    "metrics",
    "pytree",
    "quantizers",
    "static",
    "transforms",
]

__version__ = "0.2.0"
