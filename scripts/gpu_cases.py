"""The cases of `bench_gpu.py`: programs with the same result, and their check."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel_cases import Case  # noqa: E402

from isojax import Codec, quantizers, transforms  # noqa: E402
from isojax.kvcache import LayerCache, new_cache, store  # noqa: E402

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Group:
    """Programs timed in the same rounds.

    Attributes:
        config: of its rows.
        moved: minimum of bytes read and written, by way.
        make: `key -> arguments`, by way.
        call: the programs, by way.
        donated: ways whose first argument is donated, and whose first result replaces it.
        check: `{way: result} -> {metric: (value, largest allowed)}` of the first results.
    """

    config: dict[str, Any]
    moved: dict[str, int]
    make: dict[str, Callable[[Any], tuple[Any, ...]]]
    call: dict[str, Callable[..., Any]]
    check: Callable[[dict[str, Any], dict[str, Any]], dict[str, dict[str, tuple[float, float]]]]
    donated: tuple[str, ...] = ()


def copy_of(moved: int, dtype: str) -> tuple[Callable[[Any], tuple[Any]], Callable[[Any], Any]]:
    """`x + 1`, which reads and writes `moved` bytes, and its argument."""
    number = max(moved // 2 // jnp.dtype(dtype).itemsize, 1)

    def make(key: Any) -> tuple[Any]:
        return (jax.random.normal(key, (number,), jnp.float32).astype(dtype),)

    return make, lambda x: x + 1


def kernel_group(case: Case, vectors: int, size: str, mine: str) -> Group:
    """A kernel, plain JAX compiled by XLA, and a copy of as many bytes."""
    moved = case.moved(vectors)
    make_copy, copy = copy_of(moved, case.dtype)

    def make(key: Any) -> tuple[Any, ...]:
        return case.arguments(key, vectors)

    def check(args: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
        rows = np.unique(np.r_[0 : min(200, vectors), max(vectors - 57, 0) : vectors])
        found = {
            way: {"deviation": (case.deviation(args[way], results[way], rows), case.tolerance)}
            for way in (mine, "xla")
            if way in results
        }
        if mine in results and "xla" in results:
            share = case.disagreement(args[mine], results[mine], results["xla"])
            found[mine]["disagreement"] = (share, case.least_loss)
        return found

    ways = (mine, "xla")
    return Group(
        case.named | {"size": size, "vectors": vectors},
        dict.fromkeys(("copy", *ways), moved),
        {"copy": make_copy} | dict.fromkeys(ways, make),
        {"copy": copy} | {way: case.call(way) for way in ways},
        check,
    )


@dataclasses.dataclass(frozen=True)
class Decode:
    """One token read against an almost full cache of `slots` tokens.

    Attributes:
        batch: texts.
        heads: query heads.
        groups: key heads.
        dim: length of a head.
        slots: number of tokens that fit.
        bits: of a code, of the packed cache.
        transform: of its codecs.
    """

    batch: int
    heads: int
    groups: int
    dim: int
    slots: int
    bits: int
    transform: str

    def group(self) -> Group:
        """Our caches, packed and in bf16, and other implementations with a cache in bf16."""
        numbers = 2 * self.batch * self.slots * self.groups * self.dim
        codes = numbers * self.bits // 8 + numbers // self.dim * 2
        make_copy, copy = copy_of(codes, "bfloat16")
        caches = {
            "packed": functools.partial(self._cache, packed=True),
            "bf16": functools.partial(self._cache, packed=False),
        }
        if jax.default_backend() == "gpu":
            caches["packed triton"] = functools.partial(
                self._cache, packed=True, implementation="triton"
            )
        calls = dict.fromkeys(caches, self._attend) | self._others()
        moved = {"copy": codes} | dict.fromkeys(calls, 2 * numbers)
        moved |= {way: codes for way in caches if way.startswith("packed")}
        makes = dict.fromkeys(calls, self._tensors) | {"copy": make_copy} | caches
        named = dataclasses.asdict(self) | {"kernel": "decode_attention", "dtype": "bfloat16"}
        named["size"] = "memory" if codes >= 200 * MIB else "batch"
        return Group(named, moved, makes, {"copy": copy} | calls, self._check, tuple(caches))

    def _check(self, args: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
        """Check all in bf16 against one in fp32; the packed one within the error of 3 bits."""
        q, k, v = (np.asarray(a[:1], np.float64) for a in args["jax xla"])
        group = self.heads // self.groups
        k, v = (np.repeat(a, group, axis=2) for a in (k, v))
        logits = np.einsum("bqhd,bshd->bhqs", q, k)[..., : self.slots] * self.dim**-0.5
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        want = np.einsum("bhqs,bshd->bqhd", weights, v).reshape(-1)
        found = {}
        for way, result in results.items():
            if way == "copy":
                continue
            out = result[1] if way in ("packed", "packed triton", "bf16") else result
            error = np.asarray(out[:1], np.float64).reshape(-1) - want
            limit = 0.1 if way.startswith("packed") else 1e-3
            found[way] = {"deviation": (float(np.sum(error**2) / np.sum(want**2)), limit)}
        return found

    def _tensors(self, key: Any) -> tuple[Any, Any, Any]:
        """A query [b, 1, h, d] and keys and values [b, s, g, d]."""
        of_q, of_k, of_v = jax.random.split(key, 3)
        shape = (self.batch, self.slots, self.groups, self.dim)
        q = jax.random.normal(of_q, (self.batch, 1, self.heads, self.dim), jnp.bfloat16)
        k, v = (jax.random.normal(key, shape, jnp.bfloat16) for key in (of_k, of_v))
        return q, k, v

    def _cache(self, key: Any, packed: bool, implementation: str | None = None) -> tuple[Any, ...]:
        """A layer with all but one token, then the query, key and value of the last one."""
        q, k, v = self._tensors(key)
        kept = {}
        if packed:

            def make(key: Any) -> Codec:
                book = quantizers.lloyd_max_sphere(self.bits, self.dim)
                return Codec(transforms.from_name(key, self.transform, self.dim), book)

            keys = jax.random.split(jax.random.key(1), (2, 1, self.groups))
            codecs = [jax.vmap(jax.vmap(make))(keys[i]) for i in range(2)]
            both = [store(codec, implementation=implementation) for codec in codecs]
            kept = {"keys": both[0], "values": both[1], "rotated": True}
        cache = new_cache(
            layers=1, batch=self.batch, slots=self.slots, kv_heads=self.groups,
            head_dim=self.dim, dtype=jnp.bfloat16, **kept,
        )  # fmt: skip
        layer = jax.tree.map(lambda a: a[0], cache.layers)
        frequency = jnp.ones(self.dim // 2)
        layer, _ = layer.attend(q[:, :1], k[:, :-1], v[:, :-1], jnp.int32(0), frequency)
        return layer, q, k[:, -1:], v[:, -1:], jnp.int32(self.slots - 1), frequency

    def _attend(self, layer: LayerCache, *args: Any) -> tuple[LayerCache, Any]:
        return layer.attend(*args)

    def _others(self) -> dict[str, Callable[..., Any]]:
        ways: dict[str, Callable[..., Any]] = {
            "jax xla": functools.partial(jax.nn.dot_product_attention, implementation="xla")
        }
        if jax.default_backend() == "gpu":
            from jax.experimental.pallas.ops.gpu import decode_attention

            ways["jax cudnn"] = functools.partial(
                jax.nn.dot_product_attention, implementation="cudnn"
            )
            ways["pallas decode_attention"] = lambda q, k, v: decode_attention.gqa(q[:, 0], k, v)
        return ways


def large(case: Case, size: int, mine: str) -> Group:
    """A kernel on vectors that move at least `size` bytes."""
    return kernel_group(case, case.vectors_for(size), "memory", mine)


def phases(quick: bool, mine: str, size: int) -> Iterator[list[Group]]:
    """All cases, the most important first."""

    def memory(*values: Any) -> Group:
        return large(Case(*values), size, mine)

    def small(*values: Any) -> Group:
        return kernel_group(Case(*values), 8192, "batch", mine)

    if quick:
        kernels = ("roundtrip", "store", "load", "scores")
        cases = [Case(kernel, "quaternion_full", 64, "bfloat16", 3) for kernel in kernels]
        cases += [Case("apply", "hadamard", 64, "bfloat16", 3)]
        small_ones = [kernel_group(case, 33, "batch", mine) for case in cases]
        yield [Decode(2, 4, 2, 64, 64, 3, "haar").group(), *small_ones]
        return
    halves, floats = ("bfloat16", "float32"), ("float16", "float32")
    packing = ("roundtrip", "store", "load", "scores")
    yield [
        Decode(8, 32, 8, 128, 8192, 3, "haar").group(),
        *(memory(k, "quaternion_full", 128, t, 3) for t in halves for k in packing[:3]),
        memory("scores", "quaternion_full", 128, "bfloat16", 3),
        *(memory("apply", "hadamard", d, "bfloat16", 3) for d in (128, 1024, 4096)),
        *(memory(k, "haar", 128, "bfloat16", 3) for k in ("roundtrip", "store")),
        *(
            small("roundtrip", "quaternion_full", d, t, b)
            for t in floats
            for b in (2, 3, 4)
            for d in (128, 256, 512)
        ),
    ]
    names = ("hadamard", "quaternion_fast", "planar", "rotor")
    yield [
        Decode(32, 32, 8, 128, 8192, 3, "haar").group(),
        *(memory(k, "quaternion_full", 128, "bfloat16", b) for b in (2, 4) for k in packing),
        *(memory("roundtrip", name, 128, t, 3) for name in names for t in halves),
        *(memory("apply", "hadamard", d, "float32", 3) for d in (128, 512, 1024, 4096, 1536)),
        *(memory("apply", "hadamard", d, "bfloat16", 3) for d in (512, 1536, 3584)),
        memory("roundtrip", "haar", 64, "float32", 3),
        memory("load", "haar", 128, "bfloat16", 3),
    ]
