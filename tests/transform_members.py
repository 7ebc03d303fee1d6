"""Transforms of every kind, for laws over all of them."""

import jax
import jax.numpy as jnp

from isojax import transforms as tf
from isojax.recipes import COORDINATES


def blocks_of(make, count):
    return lambda key: tf.block_diagonal(jax.vmap(make)(jax.random.split(key, count)))


def named(name, dim):
    return lambda key: tf.from_name(key, name, dim)


def fitted(dim):
    scale = jnp.linspace(0.5, 3, dim)
    return lambda key: tf.pca(scale[None] * jax.random.normal(key, (4 * dim, dim)))


def diagonal(dim):
    return lambda key: tf.Diagonal(jnp.exp(jax.random.uniform(key, (dim,), minval=-1)))


def oblique(dim):
    """Of singular values from 1/e to e."""

    def make(key):
        left, right = (tf.haar(part, dim).matrix() for part in jax.random.split(key))
        size = jnp.exp(jnp.linspace(-1, 1, dim))
        return tf.Oblique((left * size[None]) @ right, (right.T / size[None]) @ left.T)

    return make


DRAWN = [
    name + ":4" * (name == "block_hadamard")
    for name, member in COORDINATES.members.items()
    if not member.facts["fitted"]
]


ISOMETRIES = {
    "identity-5": lambda key: tf.identity(5),
    "haar-24": lambda key: tf.haar(key, 24),
    "pca-6": fitted(6),
    "hadamard-16": lambda key: tf.hadamard(key, 16),
    "hadamard-24": lambda key: tf.hadamard(key, 24),
    "block_hadamard-24-12": lambda key: tf.block_hadamard(key, 24, 12),
    "planar-24": lambda key: tf.planar(key, 24),
    "quaternion_fast-24": lambda key: tf.quaternion(key, 24, "fast"),
    "quaternion_full-24": lambda key: tf.quaternion(key, 24),
    "rotor-24": lambda key: tf.rotor(key, 24),
    "permutation-24": lambda key: tf.permutation(key, 24),
    "block_diagonal-haar-24": blocks_of(lambda key: tf.haar(key, 6), 4),
    "block_diagonal-nested-24": blocks_of(blocks_of(named("planar@random_permutation", 4), 3), 2),
    "block_diagonal-padded-20": blocks_of(named("rotor", 5), 4),
    "repeat-hadamard-24": lambda key: tf.repeat(tf.hadamard(key, 12), 2),
    "cayley-6": named("cayley", 6),
    "exponential-6": named("exponential", 6),
    "butterfly_planar-12": named("butterfly_planar", 12),
    "butterfly_quaternion-24": named("butterfly_quaternion", 24),
    "strided-24": lambda key: tf.strided(tf.quaternion(key, 24), 4, 3),
    "kronecker-24": lambda key: tf.kronecker(tf.rotor(key, 6), tf.hadamard(key, 4)),
    "padded-rotor-10": lambda key: tf.padded(tf.rotor(key, 12), 10),
    "composed-24": named("random_permutation@quaternion_fast@block_hadamard:12", 24),
}


OTHERS = {
    "diagonal-24": diagonal(24),
    "oblique-6": oblique(6),
    "block_diagonal-oblique-12": blocks_of(oblique(4), 3),
    "repeat-diagonal-24": lambda key: tf.repeat(diagonal(6)(key), 4),
    "strided-oblique-12": lambda key: tf.strided(tf.repeat(oblique(4)(key), 3), 4, 3),
    "kronecker-oblique-12": lambda key: tf.kronecker(oblique(4)(key), tf.haar(key, 3)),
    "kronecker-padded-20": lambda key: tf.kronecker(
        diagonal(4)(key), tf.padded(oblique(8)(key), 5)
    ),
    "padded-oblique-5": lambda key: tf.padded(oblique(8)(key), 5),
    "composed-6": lambda key: tf.rotor(key, 6) @ diagonal(6)(key) @ oblique(6)(key),
    "composed-padded-10": lambda key: (
        tf.padded(blocks_of(oblique(4), 3)(key), 10) @ diagonal(12)(key) @ tf.planar(key, 12)
    ),
}
