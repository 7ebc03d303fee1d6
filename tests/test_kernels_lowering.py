"""Every kernel lowers for CUDA, on a machine without, and stands alone in its program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from kernel_members import CODECS, codec_of, hadamard

from isojax.quantizers import lloyd_max_sphere


def lowered(call, *args):
    """The program for a GPU that is described, by the default implementation."""
    device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return jax.jit(call).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def check(call, *args, kernels=1):
    text = lowered(call, *args)
    assert text.count("__gpu$xla.gpu.triton") == kernels


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
        check(lambda c, x: c.roundtrip(x), codec, x)
        if dtype == own:
            check(lambda c, x: c.store(x), codec, x)
            packed = packed_for(codec, x)
            check(lambda c, p, dtype=dtype: c.load(p, dtype), codec, packed)


@pytest.mark.parametrize("dim, bits", [(32, 2), (68, 3), (128, 4), (1024, 3)])
def test_scores_lower_for_cuda(dim, bits):
    codec = codec_of("full-32", bits)
    # whose transform of the query is another
    codec = type(codec)(hadamard(dim, 2), lloyd_max_sphere(bits, dim))
    packed = packed_for(codec, jax.ShapeDtypeStruct((37, dim), jnp.float32))
    check(lambda c, q, p: c.scores(q, p), codec, jnp.ones((4, dim)), packed, kernels=2)


@pytest.mark.parametrize(
    "dim, block, dtype",
    [
        (32, 0, "float16"), (896, 0, "float32"), (4096, 0, "bfloat16"), (576, 64, "float32"),
        (1536, 0, "bfloat16"), (4096, 0, "float32"), (1536, 0, "float16"),
    ],
)  # fmt: skip
def test_hadamard_lowers_for_cuda(dim, block, dtype):
    x = jax.ShapeDtypeStruct((5, dim), dtype)
    check(lambda t, x: t.apply(x), hadamard(dim, block), x)


def test_batches_of_codecs_lower_for_cuda():
    codec = codec_of("full-32")
    codecs = jax.tree.map(lambda a: jnp.stack([a, a]), codec)
    x = jax.ShapeDtypeStruct((2, 37, 32), jnp.bfloat16)
    check(jax.vmap(lambda c, x: c.roundtrip(x)), codecs, x)
