"""Stage 1 of vector quantization: does the rotation before the codebook matter?

    isojax stage1
    isojax stage1 --model Qwen/Qwen2.5-0.5B --text wikitext-2 --out q05

A vector is divided by its norm and rotated, each coordinate is rounded to the nearest of 2^b
Lloyd-Max levels, and all is inverted (IsoQuant, arXiv 2603.28430). Measured: the costs of each
rotation, its error and time on synthetic unit vectors in the 18 published settings and in bf16, and
its error on the keys (after RoPE) and values of a model, one vector per head, one rotation per seed
for all layers and heads.

Expected on unit vectors of d = 128, for every rotation and for none: an error of 0.1160, 0.0340 and
0.0093 at 2, 3 and 4 bit, as in theory (0.1175, 0.0345 and 0.0095 for d to infinity). On keys of the
tiny model rotations differ: at 3 bit 0.033 (haar) to 0.052 (identity).

`--quick` takes half a minute on 2 CPU cores.
"""

from __future__ import annotations

import itertools

from isojax.report import fill

from ..common import check_drawn, finish, run
from .config import Config
from .measure import codebook, costs, real, synthetic, times
from .report import add_published, figure, text


def main(config: Config) -> None:
    """The tables and the figure."""
    config.check_positive("seeds", "vectors", "repeats")
    if len(config.coordinates) == 1:
        raise ValueError("coordinates must name others than identity.")
    check_drawn(config.coordinates, *config.dims)
    for dim, bits in itertools.product(config.dims, config.bits):
        codebook(("sphere", bits), dim)
    study = config.study("stage1", "seeds")
    base, on_model = real(config)
    fill(study, [on_model, *costs(config), *synthetic(config), *times(config)])
    add_published(study)
    finish(study, text(study, base, config.bits), figure(study, base))


if __name__ == "__main__":
    run(main, Config, "stage1", __doc__)
