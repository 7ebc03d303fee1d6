"""Which implementation runs where, and what the kernels refuse."""

import functools
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from isojax import Codec, quantizers, transforms
from isojax._core import implementation as choice

KEY = jax.random.key(5)
sphere = functools.partial(quantizers.lloyd_max_sphere, 3)
SPHERE = sphere(32)
PLANAR = transforms.planar(KEY, 32)
BAD = {
    "pallas": (Codec(PLANAR, SPHERE), "float32", "pallas", "implementation must be one of"),
    "composed": (Codec(PLANAR @ PLANAR, SPHERE), "float32", "triton", "got Composed"),
    "device": (Codec(PLANAR, SPHERE), "float32", "triton", "an NVIDIA GPU .*got cpu; allowed"),
    "dense": (Codec(transforms.haar(KEY, 96), sphere(96)), "float32", "triton", "up to dim 64"),
    "uniform": (Codec(PLANAR, quantizers.absmax(3)), "float32", "triton", "a Codebook"),
    "group": (
        Codec(PLANAR, quantizers.lloyd_max_gaussian(3, granularity="group", group=8)),
        "float32", "triton", "granularity 'token'",
    ),
    "levels": (Codec(PLANAR, quantizers.lloyd_max_gaussian(5)), "float32", "triton", "16 levels"),
    "offset": (Codec(PLANAR, SPHERE, jnp.ones(32)), "float32", "triton", "without offset"),
    "length": (Codec(transforms.planar(KEY, 6), sphere(6)), "float32", "triton", "9 to 4096"),
    "base": (
        Codec(transforms.hadamard(KEY, 76), sphere(76)), "float32", "triton", "most 28, got 76",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_the_kernels_do_not_support_is_said(name):
    codec, dtype, implementation, words = BAD[name]
    x = jnp.ones((2, codec.transform.dim), dtype)
    for call in (
        lambda: codec.roundtrip(x, implementation),
        lambda: codec.store(x, implementation=implementation),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_codes_that_would_wrap_offsets_have_no_kernel():
    codec, rows = Codec(PLANAR, SPHERE), 2**31 // 12 + 1

    def load(packed):
        return codec.load(packed, implementation="triton")

    def store(x):
        return codec.store(x, implementation="triton")

    one = jax.eval_shape(codec.store, jnp.ones((1, 32)))
    many = jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), one)
    x = jax.ShapeDtypeStruct((rows, 32), jnp.float32)
    for call, argument in ((load, many), (store, x)):
        with pytest.raises(ValueError, match="up to 2 GiB"):
            jax.eval_shape(call, argument)


@pytest.mark.parametrize("capability", ["gfx942", "7.5", "9.0"])
def test_gpus_are_told_apart(monkeypatch, capability):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert choice._on_gpu() == (capability != "7.5")


def test_kernels_run_on_the_shards_of_a_mesh():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, spec = jax.sharding.PartitionSpec("x"), jax.sharding.PartitionSpec()
    codec, x = Codec(PLANAR, SPHERE), jax.random.normal(KEY, (8, 32))
    call = jax.shard_map(Codec.roundtrip, mesh=mesh, in_specs=(spec, rows), out_specs=rows)
    assert_allclose(jax.jit(call)(codec, x), codec.roundtrip(x), atol=1e-5)
    queries, keys = x[:2], jax.jit(codec.store)(x)
    given = {"mesh": mesh, "in_specs": (spec, rows, spec), "out_specs": rows}
    products = jax.jit(jax.shard_map(Codec.scores, **given))(codec, queries, keys)
    assert_allclose(products, np.asarray(queries) @ np.asarray(codec.load(keys)).T, atol=1e-4)


def test_no_vectors_go_by_plain_jax():
    codec, none = Codec(PLANAR, SPHERE), jnp.ones((0, 32))
    assert codec.roundtrip(none).shape == (0, 32)
    with pytest.raises(ValueError, match=r"non-empty arrays .*, got float32 \(0, 32\)"):
        codec.roundtrip(none, "triton")


def test_bad_codes_and_queries_are_refused():
    codec = Codec(PLANAR, SPHERE)
    packed = jax.jit(codec.store)(jnp.ones((2, 32)))
    with pytest.raises(ValueError, match="query must have a last axis of length 32"):
        codec.scores(jnp.ones(31), packed)
    with pytest.raises(ValueError, match=r"packed must be of keys \[s, d\]"):
        codec.scores(jnp.ones(32), jax.tree.map(lambda a: a[None], packed))
    with pytest.raises(ValueError, match="1 to 16 queries, got 17"):
        codec.scores(jnp.ones((17, 32)), packed, "triton")
    other = Codec(transforms.planar(KEY, 64), SPHERE)
    with pytest.raises(ValueError, match="64 of 3 bits, got 32 of 3 bits"):
        other.load(packed, implementation="triton")
    coarse = Codec(PLANAR, quantizers.lloyd_max_sphere(2, 32))
    with pytest.raises(ValueError, match="32 of 2 bits, got 32 of 3"):
        coarse.scores(jnp.ones(32), packed, "triton")
    padded = transforms.padded(PLANAR, 31)
    with pytest.raises(ValueError, match="got Padded"):
        padded.apply(jnp.ones(31), "triton")
    with pytest.raises(ValueError, match="x must have a last axis of length 32"):
        PLANAR.apply(jnp.ones(31))


def test_nothing_of_pallas_is_needed_on_a_cpu():
    code = """
import sys
for name in ("triton", "mosaic_gpu"):
    sys.modules["jax.experimental.pallas." + name] = None
import jax
from isojax import Codec, quantizers, transforms
codec = Codec(transforms.hadamard(jax.random.key(0), 32), quantizers.lloyd_max_sphere(3, 32))
x = jax.random.normal(jax.random.key(1), (4, 32))
assert codec.roundtrip(x).shape == codec.load(codec.store(x)).shape == (4, 32)
try:
    codec.roundtrip(x, "interpret")
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs Pallas with Triton" in run.stdout and "allowed are None and 'xla'" in run.stdout
