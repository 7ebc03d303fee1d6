"""The experimental kernels for Mosaic: they lower for CUDA, and their bodies are right.

Mosaic itself has no interpreter to run them; their bodies are run by that of Pallas, with the calls
of `_mosaic` put in its terms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from kernel_members import fast, full, hadamard, planar
from numpy.testing import assert_allclose
from test_kernels_lowering import lowered

from isojax import Codec, quantizers
from isojax.kernels import mosaic

CODECS = {
    "full": (full(32), 3, "norm", "float32"),
    "fast": (fast(16), 2, "rms", "bfloat16"),
    "none": (full(16), 4, "none", "float16"),
}


def make(name):
    t, bits, normalize, dtype = CODECS[name]
    unit = t.dim if normalize == "norm" else 1
    return Codec(t, quantizers.lloyd_max_gaussian(bits, unit, normalize=normalize)), dtype


def columns(dim, dtype):
    x = np.random.default_rng(dim).standard_normal((dim, 2 * mosaic.WIDTH))
    return jnp.asarray(x, dtype).at[:, 3].set(0)


@pytest.fixture
def interpreted(monkeypatch):
    def over_columns(body, operands, out, width, scratch=()):
        def kernel(*refs):
            here = pl.ds(pl.program_id(0) * width, width)
            body(here, refs[: len(operands)], *refs[len(operands) :])

        shapes = [jax.ShapeDtypeStruct(out.shape, out.dtype), *scratch]
        call = pl.pallas_call(
            kernel, out_shape=shapes, grid=(out.shape[1] // width,), interpret=True
        )
        return call(*operands)[0]

    monkeypatch.setattr(mosaic, "over_columns", over_columns)
    monkeypatch.setattr(mosaic, "zeros", jnp.zeros)
    monkeypatch.setattr(
        mosaic, "rows_in_shared_memory", lambda n, m: [jax.ShapeDtypeStruct((n, m), jnp.float32)]
    )


@pytest.mark.parametrize("name", CODECS)
def test_round_trips_of_columns(name, interpreted):
    codec, dtype = make(name)
    x = columns(codec.transform.dim, dtype)
    found = np.asarray(jax.jit(lambda c, x: mosaic.roundtrip_columns(c, x))(codec, x), np.float32)
    want = np.asarray(jax.jit(codec.roundtrip)(x.T).T, np.float32)
    near = np.abs(found - want) <= 8 * float(jnp.finfo(dtype).eps) + 1e-5
    assert near.mean() > 0.999


@pytest.mark.parametrize("inverse", [False, True])
def test_hadamard_transforms_of_columns(inverse, interpreted):
    t = hadamard(16).T if inverse else hadamard(16)
    x = columns(16, "float32")
    found = jax.jit(lambda t, x: mosaic.hadamard_columns(t, x))(t, x)
    assert_allclose(found, (x.T @ t.matrix()).T, atol=1e-5)


@pytest.mark.parametrize("name", CODECS)
def test_round_trips_lower_for_mosaic(name):
    codec, dtype = make(name)
    text = lowered(mosaic.roundtrip_columns, codec, columns(codec.transform.dim, dtype))
    assert text.count("mosaic_gpu") and "triton" not in text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hadamard_transforms_lower_for_mosaic(dtype):
    assert "mosaic_gpu" in lowered(mosaic.hadamard_columns, hadamard(128), columns(128, dtype))


def test_what_mosaic_does_not_support_is_said():
    codec, _ = make("full")
    with pytest.raises(ValueError, match="a Quaternion as transform"):
        mosaic.roundtrip_columns(Codec(planar(32), codec.quantizer), columns(32, "float32"))
    with pytest.raises(ValueError, match=r"x must have shape \[32, batch\]"):
        mosaic.roundtrip_columns(codec, columns(16, "float32"))
    with pytest.raises(ValueError, match="WIDTH must divide batch=300"):
        mosaic.roundtrip_columns(codec, jnp.ones((32, 300)))
    with pytest.raises(ValueError, match="one block of 2.k up to 128"):
        mosaic.hadamard_columns(hadamard(256), columns(256, "float32"))
