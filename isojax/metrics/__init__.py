"""Metrics: pure functions of plain arrays, `x` the original and `x_hat` its reconstruction.

Each takes arrays of any shape whose last axis is the vector, returns one scalar, and works under
`jit` and `vmap`; bf16 and fp16 are computed in fp32. Arrays that are empty, not floating or of
different shapes raise ValueError. `measure` returns all distortion metrics in one call, for sweeps,
at `thresholds` computed once from `x`.
"""

from isojax.metrics.attention import AttentionErrors, attention_errors
from isojax.metrics.block_mass import (
    block_mass,
    expected_peak,
    mass_concentration,
    mass_imbalance,
    rotation_bound,
    suppressed,
)
from isojax.metrics.entropy import code_entropy_bits, cross_entropy_bits
from isojax.metrics.error import cosine, mse, nmse, relative_error
from isojax.metrics.firings import (
    false_firings,
    firing_f1,
    firing_precision,
    firing_recall,
    missed_firings,
    rms,
)
from isojax.metrics.linear import alignment_db, bits_db, concentration_db, expected_sqnr_db, sqnr_db
from isojax.metrics.outliers import noise_floor_mse, outlier_mse, quantile_threshold
from isojax.metrics.rate_distortion import (
    allocate_bits,
    coding_gain_db,
    differential_entropy_bits,
    distance_to_shannon_db,
    gaussian_entropy_bits,
    shannon_distortion,
    shannon_rate,
)
from isojax.metrics.shape import (
    effective_coordinates,
    effective_rank,
    kurtosis,
    peak_to_rms,
    top_k_coordinates,
    top_k_energy,
)
from isojax.metrics.summary import MEASURE_UNITS, Thresholds, measure, thresholds

__all__ = [
    "AttentionErrors",
    "MEASURE_UNITS",
    "Thresholds",
    "alignment_db",
    "allocate_bits",
    "attention_errors",
    "bits_db",
    "block_mass",
    "code_entropy_bits",
    "coding_gain_db",
    "concentration_db",
    "cosine",
    "cross_entropy_bits",
    "differential_entropy_bits",
    "distance_to_shannon_db",
    "effective_coordinates",
    "effective_rank",
    "expected_peak",
    "expected_sqnr_db",
    "false_firings",
    "firing_f1",
    "firing_precision",
    "firing_recall",
    "gaussian_entropy_bits",
    "kurtosis",
    "mass_concentration",
    "mass_imbalance",
    "measure",
    "missed_firings",
    "mse",
    "nmse",
    "noise_floor_mse",
    "outlier_mse",
    "peak_to_rms",
    "quantile_threshold",
    "relative_error",
    "rms",
    "rotation_bound",
    "shannon_distortion",
    "shannon_rate",
    "sqnr_db",
    "suppressed",
    "thresholds",
    "top_k_coordinates",
    "top_k_energy",
]
