"""The codecs on which kernels are tried: every transform, dtype, number of bits and edge of d."""

import jax.numpy as jnp
import numpy as np

from isojax import Codec, quantizers, transforms


def _draw(dim, *shape):
    return jnp.asarray(np.random.default_rng(dim).standard_normal(shape, np.float32))


def full(dim):
    return transforms.Quaternion(_draw(dim, dim // 4, 4), _draw(dim + 1, dim // 4, 4))


def fast(dim):
    return transforms.Quaternion(_draw(dim, dim // 4, 4))


def planar(dim):
    return transforms.Planar(_draw(dim, dim // 2, 2))


def rotor(dim):
    return transforms.Rotor(_draw(dim, dim // 3, 4))


def padded(make, block):
    """`make` for any length: padded to the next multiple of `block`."""
    return lambda dim: transforms.padded(make(dim + -dim % block), dim)


def hadamard(dim, block=0):
    return transforms.Hadamard(jnp.sign(_draw(dim, dim)), block or dim)


def dense(dim):
    return transforms.Dense(jnp.asarray(np.linalg.qr(_draw(dim, dim, dim))[0]))


# name: transform, d, dtype, bits, normalize, batch
CODECS = {
    "full-32": (full, 32, "float32", 2, "norm", 65),
    "full-102": (padded(full, 4), 102, "bfloat16", 3, "rms", 7),
    "full-1024": (full, 1024, "float16", 4, "norm", 3),
    "fast-96": (fast, 96, "bfloat16", 4, "none", 33),
    "planar-35": (padded(planar, 2), 35, "float16", 3, "norm", 9),
    "planar-256": (planar, 256, "bfloat16", 2, "rms", 9),
    "rotor-130": (padded(rotor, 3), 130, "float32", 3, "norm", 17),
    "rotor-66": (rotor, 66, "bfloat16", 2, "norm", 5),
    "hadamard-64": (hadamard, 64, "float32", 4, "norm", 33),
    "hadamard-48": (hadamard, 48, "bfloat16", 3, "norm", 5),
    "hadamard-blocks": (lambda dim: hadamard(dim, 32), 96, "float16", 2, "norm", 5),
    "dense-48": (dense, 48, "float32", 2, "norm", 65),
    "dense-128": (dense, 128, "bfloat16", 3, "norm", 64),
}


def codec_of(name, bits=None):
    """The codec of this name, with levels fit for its scale."""
    make, dim, _, own, normalize, _ = CODECS[name]
    unit = dim if normalize == "norm" else 1
    return Codec(make(dim), quantizers.lloyd_max_gaussian(bits or own, unit, normalize=normalize))


def vectors(name):
    """Heavy-tailed vectors for it, of uneven norms."""
    _, dim, dtype, _, _, batch = CODECS[name]
    x = np.random.default_rng(dim).standard_t(5.0, (batch, dim))
    return jnp.asarray(x * np.linspace(0.5, 2, batch)[:, None], jnp.dtype(dtype))
