"""Transforms: invertible linear maps of the last axis, from the identity to a dense rotation.

All have `T`, `inverse` and `dual` and compose by `a @ b` (see `Transform`). All are isometries but
`Oblique`, `Diagonal` and what contains them. What a member costs is counted for one vector, so that
tables of different authors can be compared:

- `params`: the stored numbers that are free to choose. A dense matrix of order d has d^2, a
  diagonal d, a plane (cos, sin) 2, a quaternion 4, a Hadamard its d signs, a permutation its d
  indices.
- `fmas`: fused multiply-adds of the forward transform, parameters ready to use. A dense matrix has
  d^2, a diagonal d, a plane 4, a quaternion product 16, a rotor 56 in multivector form. A Hadamard
  of order 2^k m counts its additions, k + m a coordinate (k for m = 1); signs and permutations
  count 0.

Padding counts as the padded length, blocks and compositions as the sum of their parts.

Parameters of `cayley`, `exponential`, `butterfly` and the block rotations are free, to be learned
by `isojax.learn.fit`: whatever their values, the transform is orthogonal.
"""

from isojax.transforms.base import Composed as Composed
from isojax.transforms.base import Identity as Identity
from isojax.transforms.base import Transform as Transform
from isojax.transforms.base import identity as identity
from isojax.transforms.block_diagonal import BlockDiagonal as BlockDiagonal
from isojax.transforms.block_diagonal import block_diagonal as block_diagonal
from isojax.transforms.block_diagonal import repeat as repeat
from isojax.transforms.butterfly import Strided as Strided
from isojax.transforms.butterfly import butterfly as butterfly
from isojax.transforms.butterfly import strided as strided
from isojax.transforms.cayley import Cayley as Cayley
from isojax.transforms.cayley import cayley as cayley
from isojax.transforms.coordinates import Coordinates as Coordinates
from isojax.transforms.coordinates import from_name as from_name
from isojax.transforms.dense import Dense as Dense
from isojax.transforms.dense import haar as haar
from isojax.transforms.dense import pca as pca
from isojax.transforms.diagonal import Diagonal as Diagonal
from isojax.transforms.exponential import Exponential as Exponential
from isojax.transforms.exponential import exponential as exponential
from isojax.transforms.hadamard import Hadamard as Hadamard
from isojax.transforms.hadamard import block_hadamard as block_hadamard
from isojax.transforms.hadamard import fwht as fwht
from isojax.transforms.hadamard import hadamard as hadamard
from isojax.transforms.kronecker import Kronecker as Kronecker
from isojax.transforms.kronecker import kronecker as kronecker
from isojax.transforms.oblique import Oblique as Oblique
from isojax.transforms.padded import Padded as Padded
from isojax.transforms.padded import padded as padded
from isojax.transforms.paley import admissible_blocks as admissible_blocks
from isojax.transforms.paley import hadamard_matrix as hadamard_matrix
from isojax.transforms.permutation import Permutation as Permutation
from isojax.transforms.permutation import permutation as permutation
from isojax.transforms.planar import Planar as Planar
from isojax.transforms.planar import planar as planar
from isojax.transforms.quaternion import Quaternion as Quaternion
from isojax.transforms.quaternion import quaternion as quaternion
from isojax.transforms.rotor import Rotor as Rotor
from isojax.transforms.rotor import rotor as rotor
