"""isojax: when you quantize an LLM, should you rotate its coordinates or align them?

    codec = Codec(transforms.haar(key, 576), quantizers.absmax(3))
    metrics.nmse(x, codec.roundtrip(x))

The algebra is here and imports nothing but jax and numpy. `isojax.sweep` and `isojax.report` run
and record experiments; `isojax.models` and `isojax.data` bring language models and texts.
"""

from isojax import kernels as kernels
from isojax import metrics as metrics
from isojax import quantizers as quantizers
from isojax import transforms as transforms
from isojax._core.implementation import IMPLEMENTATIONS as IMPLEMENTATIONS
from isojax._core.pytree import pytree as pytree
from isojax._core.pytree import static as static
from isojax.codec import Codec as Codec
from isojax.quantizers.base import Quantizer as Quantizer
from isojax.transforms.base import Transform as Transform

__version__ = "0.1.0"
