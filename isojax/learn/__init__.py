"""Learning from calibration data: transforms that are fitted instead of drawn.

Permutations before a block rotation: the rotation mixes only within its blocks, so which channels
share a block is a free choice, without cost at inference, where the permutation merges into
weights. `mass_diff` evens out the mean l1 mass of the blocks, `co_activation` that per token;
`zigzag` and `absmax_order` are baselines.

In front of a linear layer, axes or scales are fitted to its inputs and weights together: `wush`,
`cat` and `kron_wush` in closed form, `balance_scale`, `smooth_scale` and `awq_scale` as diagonals.
By the error of the layer's output, `best_balance` chooses and `learned_kronecker` learns.

By gradients, `fit` learns any pytree: rotations with free parameters, or dense ones that `stiefel`
keeps orthogonal, by a loss of `isojax.learn.objectives`. `aligned` axes and `low_rank` need no
descent; `learned_rotation` is their counterpart, axes that flatten.
"""

from isojax.learn import coordinates
from isojax.learn.alignment import aligned, learned_alignment, log_spectrum
from isojax.learn.awq import awq_scale
from isojax.learn.balance import balance_scale
from isojax.learn.fit import fit, minibatch
from isojax.learn.gptq import gptq
from isojax.learn.kronecker import kron_wush
from isojax.learn.low_rank import low_rank, rank_for_rate
from isojax.learn.moments import Gram, gram, second_moment
from isojax.learn.objectives import (
    kurtosis_loss,
    laplace_distortion,
    laplace_rate,
    log_variance,
    quantization_error,
    rate_distortion,
)
from isojax.learn.output import best_balance, learned_kronecker, output_error
from isojax.learn.permutation import absmax_order, co_activation, mass_diff, zigzag
from isojax.learn.rotation import learned_rotation
from isojax.learn.smoothquant import smooth, smooth_scale
from isojax.learn.stiefel import stiefel
from isojax.learn.wush import cat, wush

__all__ = [
    "Gram",
    "absmax_order",
    "aligned",
    "awq_scale",
    "balance_scale",
    "best_balance",
    "cat",
    "co_activation",
    "coordinates",
    "fit",
    "gptq",
    "gram",
    "kron_wush",
    "kurtosis_loss",
    "laplace_distortion",
    "laplace_rate",
    "learned_alignment",
    "learned_kronecker",
    "learned_rotation",
    "log_spectrum",
    "log_variance",
    "low_rank",
    "mass_diff",
    "minibatch",
    "output_error",
    "quantization_error",
    "rank_for_rate",
    "rate_distortion",
    "second_moment",
    "smooth",
    "smooth_scale",
    "stiefel",
    "wush",
    "zigzag",
]
