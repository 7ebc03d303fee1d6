"""Generation with a packed cache through the kernels: which of them, and the same tokens."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from numpy.testing import assert_array_equal

from isojax import Codec, quantizers, transforms
from isojax.kvcache import store
from isojax.models import empty_cache, encode, forward, generate, load_model

pytestmark = pytest.mark.slow

MODEL = load_model("tiny")
STEPS = 6


def make(key):
    return Codec(transforms.hadamard(key, 64), quantizers.lloyd_max_sphere(3, 64))


CODECS = jax.jit(jax.vmap(jax.vmap(jax.vmap(make))))(jax.random.split(jax.random.key(0), (2, 4, 1)))


def cache(implementation, rotated=True):
    k, v = (
        store(jax.tree.map(lambda a, i=i: a[i], CODECS), implementation=implementation)
        for i in range(2)
    )
    return empty_cache(MODEL.config, 1, 32, keys=k, values=v, rotated=rotated)


PROMPT = jnp.asarray(encode(MODEL.tokenizer, "It was in July, "))[None]
run = functools.partial(jax.jit, static_argnums=(1, 3))(generate)


def kernels_in(jaxpr):
    """How often each kernel is called in a program and in all programs in it."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found[equation.params["name"].removeprefix("isojax_")] += 1
        for value in jax.tree.leaves([*equation.params.values()]):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and equation.primitive.name != "pallas_call":
                found += kernels_in(inner)
    return found


@pytest.mark.parametrize("rotated", [True, False])
def test_generation_by_kernels_gives_the_tokens_of_plain_jax(rotated):
    args = (MODEL.params, MODEL.config, PROMPT, STEPS, cache("interpret", rotated))
    held = kernels_in(run.trace(*args).jaxpr.jaxpr)  # a trace that the call below takes too
    # the prompt and the loop over tokens have a loop over layers each, of keys and of values
    assert held["store"] == 4 and held["load"] == 4
    assert held["scores"] == (1 if rotated else 0)  # of few queries
    said, kept = run(*args)
    want, plain = run(MODEL.params, MODEL.config, PROMPT, STEPS, cache("xla", rotated))
    assert_array_equal(said, want)
    same = kept.layers.keys.packed.data == plain.layers.keys.packed.data
    assert jnp.mean(same) > 0.99


@pytest.mark.parametrize(
    "implementation, kernels", [(None, {"store"}), ("triton", {"store", "load", "scores"})]
)
def test_a_step_for_a_gpu_holds_kernels(implementation, kernels):
    device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        args = (MODEL.params, MODEL.config, PROMPT[:, :1])
        step = jax.jit(forward, static_argnums=1).trace(*args, cache=cache(implementation))
        text = step.lower(lowering_platforms=("cuda",)).as_text()
    assert {*re.findall(r"isojax_(\w+)", text)} - {"apply"} == kernels
