"""Transforms: invertible linear maps of the last axis, from the identity to a dense rotation.

All have `T`, `inverse` and `dual` and compose by `a @ b` (see `Transform`). All are isometries
except `Oblique`, `Diagonal` and transforms that contain these. Costs are counted per vector, so
that tables of different authors can be compared:

- `params`: the stored numbers that can be chosen freely. A dense matrix of order d has d^2, a
  diagonal d, a plane (cos, sin) 2, a quaternion 4, a Hadamard its d signs, a permutation its d
  indices.
- `fmas`: fused multiply-adds of the forward transform, parameters ready to use. A dense matrix has
  d^2, a diagonal d, a plane 4, a quaternion product 16, a rotor 56 in multivector form. A Hadamard
  of order 2^k m counts its additions, k + m per coordinate (k for m = 1); signs and permutations
  count 0.

Padding counts as the padded length, blocks and compositions as the sum of their parts.

Parameters of `cayley`, `exponential`, `butterfly` and the block rotations are unconstrained: the
transform is orthogonal for all values, so `isojax.learn.fit` can learn them.
"""

from isojax.transforms.base import Composed, Identity, Transform, identity
from isojax.transforms.block_diagonal import BlockDiagonal, block_diagonal, repeat
from isojax.transforms.butterfly import Strided, butterfly, strided
from isojax.transforms.cayley import Cayley, cayley
from isojax.transforms.coordinates import Coordinates, from_name
from isojax.transforms.dense import Dense, haar, pca
from isojax.transforms.diagonal import Diagonal
from isojax.transforms.exponential import Exponential, exponential
from isojax.transforms.hadamard import Hadamard, block_hadamard, fwht, hadamard
from isojax.transforms.kronecker import Kronecker, kronecker
from isojax.transforms.oblique import Oblique
from isojax.transforms.padded import Padded, padded
from isojax.transforms.paley import admissible_blocks, hadamard_matrix
from isojax.transforms.permutation import Permutation, permutation
from isojax.transforms.planar import Planar, planar
from isojax.transforms.quaternion import Quaternion, quaternion
from isojax.transforms.rotor import Rotor, rotor

__all__ = [
    "BlockDiagonal",
    "Cayley",
    "Composed",
    "Coordinates",
    "Dense",
    "Diagonal",
    "Exponential",
    "Hadamard",
    "Identity",
    "Kronecker",
    "Oblique",
    "Padded",
    "Permutation",
    "Planar",
    "Quaternion",
    "Rotor",
    "Strided",
    "Transform",
    "admissible_blocks",
    "block_diagonal",
    "block_hadamard",
    "butterfly",
    "cayley",
    "exponential",
    "from_name",
    "fwht",
    "haar",
    "hadamard",
    "hadamard_matrix",
    "identity",
    "kronecker",
    "padded",
    "pca",
    "permutation",
    "planar",
    "quaternion",
    "repeat",
    "rotor",
    "strided",
]
