"""Every kernel lowers for CUDA, on a machine without, and stands alone in its program."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from kernel_members import CODECS, codec_of, hadamard

from isojax import kernels


def lowered(call, *args):
    """The program for CUDA; from JAX 0.11 on Triton wants to know the device."""
    if jax.__version_info__ < (0, 11):
        place = contextlib.nullcontext()
    else:
        from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

        device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, platform="gpu")
        place = use_abstract_mesh(AbstractMesh((), (), abstract_device=device))
    with place:
        return jax.jit(call).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def check(call, *args):
    text = lowered(call, *args)
    assert text.count("__gpu$xla.gpu.triton") == 1


def packed_for(codec, x):
    return jax.eval_shape(lambda codec, x: codec.store(x), codec, x)


@pytest.mark.parametrize("name", CODECS)
def test_kernels_lower_for_cuda(name):
    _, dim, own, bits, *_ = CODECS[name]
    for i, dtype in enumerate(("float32", "bfloat16", "float16")):
        if name == "dense-128" and dtype == "float32":
            continue  # goes by XLA
        x = jax.ShapeDtypeStruct((37, dim), dtype)
        codec = codec_of(name, bits if dtype == own else 2 + (bits + i) % 3)
        check(lambda c, x: kernels.roundtrip(c, x), codec, x)
        if dtype == own:
            check(lambda c, x: kernels.store(c, x), codec, x)
            packed = packed_for(codec, x)
            check(lambda c, p, dtype=dtype: kernels.load(c, p, dtype), codec, packed)


@pytest.mark.parametrize("dim, bits", [(32, 2), (66, 3), (128, 4), (1024, 3)])
def test_scores_lower_for_cuda(dim, bits):
    codec = codec_of("full-32", bits)
    codec = type(codec)(hadamard(dim, 2), codec.quantizer)
    packed = packed_for(codec, jax.ShapeDtypeStruct((37, dim), jnp.float32))
    check(lambda c, q, p: kernels.scores(c, q, p), codec, jnp.ones((4, dim)), packed)


@pytest.mark.parametrize(
    "dim, block, dtype",
    [
        (32, 0, "float16"), (896, 0, "float32"), (4096, 0, "bfloat16"), (576, 64, "float32"),
        (1536, 0, "bfloat16"), (4096, 0, "float32"), (1536, 0, "float16"),
    ],
)  # fmt: skip
def test_hadamard_lowers_for_cuda(dim, block, dtype):
    x = jax.ShapeDtypeStruct((5, dim), dtype)
    check(lambda t, x: kernels.apply(t, x), hadamard(dim, block), x)


def test_batches_of_codecs_lower_for_cuda():
    codec = codec_of("full-32")
    codecs = jax.tree.map(lambda a: jnp.stack([a, a]), codec)
    x = jax.ShapeDtypeStruct((2, 37, 32), jnp.bfloat16)
    check(jax.vmap(lambda c, x: kernels.roundtrip(c, x)), codecs, x)
