"""Metrics: pure functions of plain arrays, `x` the original and `x_hat` its reconstruction.

Each takes arrays of any shape whose last axis is the vector, returns one scalar, and works under
`jit` and `vmap`; bf16 and fp16 are computed in fp32. `measure` gives all the distortion metrics
in one call, for sweeps, at `thresholds` taken once from `x`.
"""

from isojax.metrics.attention import AttentionErrors as AttentionErrors
from isojax.metrics.attention import attention_errors as attention_errors
from isojax.metrics.block_mass import block_mass as block_mass
from isojax.metrics.block_mass import expected_peak as expected_peak
from isojax.metrics.block_mass import mass_concentration as mass_concentration
from isojax.metrics.block_mass import mass_imbalance as mass_imbalance
from isojax.metrics.block_mass import rotation_bound as rotation_bound
from isojax.metrics.block_mass import suppressed as suppressed
from isojax.metrics.entropy import code_entropy_bits as code_entropy_bits
from isojax.metrics.entropy import cross_entropy_bits as cross_entropy_bits
from isojax.metrics.error import cosine as cosine
from isojax.metrics.error import mse as mse
from isojax.metrics.error import nmse as nmse
from isojax.metrics.error import relative_error as relative_error
from isojax.metrics.firings import false_firings as false_firings
from isojax.metrics.firings import firing_f1 as firing_f1
from isojax.metrics.firings import firing_precision as firing_precision
from isojax.metrics.firings import firing_recall as firing_recall
from isojax.metrics.firings import missed_firings as missed_firings
from isojax.metrics.firings import rms as rms
from isojax.metrics.linear import alignment_db as alignment_db
from isojax.metrics.linear import bits_db as bits_db
from isojax.metrics.linear import concentration_db as concentration_db
from isojax.metrics.linear import expected_sqnr_db as expected_sqnr_db
from isojax.metrics.linear import sqnr_db as sqnr_db
from isojax.metrics.outliers import noise_floor_mse as noise_floor_mse
from isojax.metrics.outliers import outlier_mse as outlier_mse
from isojax.metrics.outliers import quantile_threshold as quantile_threshold
from isojax.metrics.rate_distortion import allocate_bits as allocate_bits
from isojax.metrics.rate_distortion import coding_gain_db as coding_gain_db
from isojax.metrics.rate_distortion import differential_entropy_bits as differential_entropy_bits
from isojax.metrics.rate_distortion import distance_to_shannon_db as distance_to_shannon_db
from isojax.metrics.rate_distortion import gaussian_entropy_bits as gaussian_entropy_bits
from isojax.metrics.rate_distortion import shannon_distortion as shannon_distortion
from isojax.metrics.rate_distortion import shannon_rate as shannon_rate
from isojax.metrics.shape import effective_coordinates as effective_coordinates
from isojax.metrics.shape import effective_rank as effective_rank
from isojax.metrics.shape import kurtosis as kurtosis
from isojax.metrics.shape import peak_to_rms as peak_to_rms
from isojax.metrics.shape import top_k_coordinates as top_k_coordinates
from isojax.metrics.shape import top_k_energy as top_k_energy
from isojax.metrics.summary import MEASURE_UNITS as MEASURE_UNITS
from isojax.metrics.summary import Thresholds as Thresholds
from isojax.metrics.summary import measure as measure
from isojax.metrics.summary import thresholds as thresholds
