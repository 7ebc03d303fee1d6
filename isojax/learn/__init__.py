"""Learning from calibration data: what of a transform is fitted instead of drawn.

Permutations before a block rotation: the rotation mixes only within its blocks, so which channels
share one is a free choice, and none at inference, where the permutation merges into weights.
`mass_diff` levels the mean l1 mass of the blocks, `co_activation` that of each token; `zigzag` and
`absmax_order` are what they are compared with.

In front of a linear layer, axes or scales are fitted to its inputs and weights together: `wush`,
`cat` and `kron_wush` in closed form, `balance_scale`, `smooth_scale` and `awq_scale` as diagonals;
by the error of what the layer returns, `best_balance` chooses and `learned_kronecker` learns.

By gradients, `fit` learns any pytree: rotations with free parameters, or dense ones that `stiefel`
keeps orthogonal, by a loss of `isojax.learn.objectives`. `aligned` axes need no descent, nor does
`low_rank`; `learned_rotation` is their counterpart, axes that flatten.
"""

from isojax.learn import coordinates as coordinates
from isojax.learn.alignment import aligned as aligned
from isojax.learn.alignment import learned_alignment as learned_alignment
from isojax.learn.alignment import log_spectrum as log_spectrum
from isojax.learn.awq import awq_scale as awq_scale
from isojax.learn.balance import balance_scale as balance_scale
from isojax.learn.fit import fit as fit
from isojax.learn.fit import minibatch as minibatch
from isojax.learn.gptq import gptq as gptq
from isojax.learn.kronecker import kron_wush as kron_wush
from isojax.learn.low_rank import low_rank as low_rank
from isojax.learn.low_rank import rank_for_rate as rank_for_rate
from isojax.learn.moments import Gram as Gram
from isojax.learn.moments import gram as gram
from isojax.learn.moments import second_moment as second_moment
from isojax.learn.objectives import kurtosis_loss as kurtosis_loss
from isojax.learn.objectives import laplace_distortion as laplace_distortion
from isojax.learn.objectives import laplace_rate as laplace_rate
from isojax.learn.objectives import log_variance as log_variance
from isojax.learn.objectives import moment_root as moment_root
from isojax.learn.objectives import quantization_error as quantization_error
from isojax.learn.objectives import rate_distortion as rate_distortion
from isojax.learn.output import best_balance as best_balance
from isojax.learn.output import learned_kronecker as learned_kronecker
from isojax.learn.output import output_error as output_error
from isojax.learn.permutation import absmax_order as absmax_order
from isojax.learn.permutation import co_activation as co_activation
from isojax.learn.permutation import mass_diff as mass_diff
from isojax.learn.permutation import zigzag as zigzag
from isojax.learn.rotation import learned_rotation as learned_rotation
from isojax.learn.smoothquant import smooth as smooth
from isojax.learn.smoothquant import smooth_scale as smooth_scale
from isojax.learn.stiefel import stiefel as stiefel
from isojax.learn.wush import cat as cat
from isojax.learn.wush import wush as wush
