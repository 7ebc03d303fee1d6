"""The decoder of the Qwen, Llama and Mistral families as one Flax module, layers scanned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from isojax._core.axes import to_rank
from isojax.kvcache import Cache, Store, apply_rope, causal_attention, new_cache
from isojax.models.config import ModelConfig
from isojax.models.hooks import Hooks, Layer, slots
from isojax.models.inputs import check_inputs, known_tokens
from isojax.models.rope import query_scale, rope_frequencies

Params = dict[str, Any]


def empty_cache(
    config: ModelConfig,
    batch: int,
    slots: int,
    dtype: Any = jnp.float32,
    keys: Store | None = None,
    values: Store | None = None,
    rotated: bool = False,
) -> Cache:
    """A cache with room for `slots` tokens in each of `batch` texts; see `kvcache.new_cache`."""
    return new_cache(
        layers=config.num_hidden_layers, batch=batch, slots=slots, dtype=dtype, rotated=rotated,
        kv_heads=config.num_key_value_heads, head_dim=config.head_dim, keys=keys, values=values,
    )  # fmt: skip


class Output(NamedTuple):
    """The results of a forward pass.

    Attributes:
        hidden: after the final norm, [batch, tokens, hidden_size].
        cache: the cache with these tokens appended, if one was given.
        captured: kind of site -> [layers asked for, batch, tokens, ...], in ascending order.
    """

    hidden: Float[Array, "b t d"]
    cache: Cache | None
    captured: dict[str, Array]


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in fp32 (Zhang and Sennrich 2019)."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:  # noqa: D102
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * to_rank(scale.astype(jnp.float32), x.ndim)).astype(x.dtype)


class Linear(nn.Module):
    """`x @ kernel + bias`, the kernel passed through the weight hook."""

    features: int
    use_bias: bool
    hooks: Hooks

    @nn.compact
    def __call__(self, x: Float[Array, "... i"], layer: Layer) -> Float[Array, "... o"]:  # noqa: D102
        init = nn.initializers.normal(0.02)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        if self.hooks.weight is not None:
            kernel = self.hooks.weight(str(self.name), layer, kernel)
        y = jnp.matmul(x, kernel.astype(x.dtype), precision="highest")  # fp32 on GPUs too
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + to_rank(bias.astype(x.dtype), y.ndim)
        return y


class DecoderLayer(nn.Module):
    """Pre-norm attention and SwiGLU, each added to the residual stream."""

    config: ModelConfig
    hooks: Hooks
    capture: Mapping[str, Sequence[int]]
    dropout: float

    @nn.compact
    def __call__(  # noqa: D102
        self, carry: tuple[Array, dict[str, Array], Any], layer: Layer, shared: Any
    ):
        config, hooks = self.config, self.hooks
        x, captured, cache = carry
        positions, start = shared
        batch, tokens, _ = x.shape

        def see(kind: str, x: Array, captured: dict[str, Array]) -> dict[str, Array]:
            if kind not in self.capture:
                return captured
            # layers that are not captured all go into one spare slot after the others
            index = [len(self.capture[kind])] * config.num_hidden_layers
            for slot, wanted in enumerate(self.capture[kind]):
                if wanted < config.num_hidden_layers:
                    index[wanted] = slot
            return captured | {kind: captured[kind].at[jnp.asarray(index)[layer]].set(x)}

        def activation(kind: str, x: Array) -> Array:
            return x if hooks.activation is None else hooks.activation(kind, layer, x)

        def linear(name: str, features: int, bias: bool, x: Array) -> Array:
            return Linear(features, bias, hooks, name=name)(x, layer)

        def drop(x: Array) -> Array:
            return nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)

        x = activation("hidden", x)
        captured = see("hidden", x, captured)

        h = RMSNorm(config.rms_norm_eps, name="input_norm")(x)
        h = activation("input:q_proj", h)
        captured = see("input:q_proj", h, captured)
        heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        q = linear("q_proj", heads * dim, config.qkv_bias, h).reshape(batch, tokens, heads, dim)
        k = linear("k_proj", groups * dim, config.qkv_bias, h).reshape(batch, tokens, groups, dim)
        v = linear("v_proj", groups * dim, config.qkv_bias, h).reshape(batch, tokens, groups, dim)
        if config.qk_norm:
            q = RMSNorm(config.rms_norm_eps, name="q_norm")(q)
            k = RMSNorm(config.rms_norm_eps, name="k_norm")(k)
        frequency = rope_frequencies(dim, config.rope_theta, config.rope_scaling)
        q = apply_rope(q.astype(jnp.float32), positions, frequency)
        q = (q * query_scale(config.rope_scaling)).astype(x.dtype)
        k = apply_rope(k, positions, frequency)
        q = q if hooks.query is None else hooks.query(layer, q)
        k = k if hooks.key is None else hooks.key(layer, k)
        v = v if hooks.value is None else hooks.value(layer, v)
        for kind, tensor in (("query", q), ("key", k), ("value", v)):
            captured = see(kind, tensor, captured)
        if cache is None:
            h = causal_attention(q, k, v)
        else:
            which = layer if self.name == "layers" else None  # of a stack, or separate
            cache, h = cache.attend(q, k, v, start, frequency, which)
        h = activation("input:o_proj", h)
        captured = see("input:o_proj", h, captured)
        x = x + drop(linear("o_proj", config.hidden_size, config.o_bias, h))

        h = RMSNorm(config.rms_norm_eps, name="post_norm")(x)
        h = activation("input:gate_proj", h)
        captured = see("input:gate_proj", h, captured)
        gate = linear("gate_proj", config.intermediate_size, config.mlp_bias, h)
        h = nn.silu(gate) * linear("up_proj", config.intermediate_size, config.mlp_bias, h)
        h = activation("input:down_proj", h)
        captured = see("input:down_proj", h, captured)
        x = x + drop(linear("down_proj", config.hidden_size, config.mlp_bias, h))
        return (x, captured, cache), None


class Decoder(nn.Module):
    """Tokens to final hidden states; see `forward` and `logits` for the pure functions."""

    config: ModelConfig
    hooks: Hooks = Hooks()
    capture: tuple[Any, ...] = ()
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: Integer[Array, "b t"], cache: Cache | None = None) -> Output:  # noqa: D102
        config = self.config
        init = nn.initializers.normal(0.02)
        embedding = self.param("embedding", init, (config.vocab_size, config.hidden_size))
        known, rows = known_tokens(tokens, config.vocab_size)
        x = jnp.where(known[..., None], embedding[rows], jnp.nan)
        batch, length = tokens.shape
        start = 0 if cache is None else cache.length
        positions = jnp.broadcast_to(start + jnp.arange(length), tokens.shape)

        wanted = {k: v for k, v in slots(self.capture).items() if k != "final"}
        captured = {
            kind: jnp.zeros((len(layers) + 1, batch, length, *_shape(config, kind)), x.dtype)
            for kind, layers in wanted.items()
        }
        kept, shared = None if cache is None else cache.layers, (positions, start)
        settings = (config, self.hooks, wanted, self.dropout)
        if self.has_variable("params", "layers_0"):
            parts = kept if isinstance(kept, tuple) else [None] * config.num_hidden_layers
            written = []
            for i, part in enumerate(parts):
                layer = DecoderLayer(*settings, name=f"layers_{i}")
                carry, _ = layer((x, captured, part), jnp.asarray(i), shared)
                x, captured, part = carry
                written.append(part)
            kept = None if kept is None else tuple(written)
        else:
            scanned = nn.scan(
                DecoderLayer,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
                length=config.num_hidden_layers,
            )
            layers = scanned(*settings, name="layers")
            carry = (x, captured, kept)
            (x, captured, kept), _ = layers(carry, jnp.arange(config.num_hidden_layers), shared)
        captured = {kind: stack[: len(wanted[kind])] for kind, stack in captured.items()}
        if config.num_hidden_layers in wanted.get("hidden", ()):
            captured["hidden"] = captured["hidden"].at[-1].set(x)
        hidden = RMSNorm(config.rms_norm_eps, name="norm")(x)
        if config.sliding_window is not None and cache is not None:
            hidden = jnp.where(start + length <= config.sliding_window, hidden, jnp.nan)
        if not config.tie_word_embeddings:
            self.param("head", init, (config.hidden_size, config.vocab_size))
        if cache is not None and kept is not None:
            cache = Cache(kept, cache.length + length)
        return Output(hidden, cache, captured)


def _shape(config: ModelConfig, kind: str) -> tuple[int, ...]:
    if kind in ("key", "value"):
        return config.num_key_value_heads, config.head_dim
    if kind == "query":
        return config.num_attention_heads, config.head_dim
    return (config.widths.get(kind.removeprefix("input:"), config.hidden_size),)


def init_params(key: Array, config: ModelConfig) -> Params:
    """Random fp32 parameters: normal(0, 0.02), norms one, biases zero.

    The tree: `embedding` [vocab, hidden]; `layers`, every leaf with a leading axis of layers:
    `input_norm`, `post_norm` (and `q_norm`, `k_norm`) with `scale`, `q_proj` ... `down_proj` with
    `kernel` [layers, in, out] and, where the family has it, `bias`; `norm`; `head`
    [hidden, vocab] unless tied.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    return nn.unbox(Decoder(config).init(key, tokens))["params"]


def param_shapes(config: ModelConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`, nothing allocated."""
    return jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))


def unstack(params: Params) -> Params:
    """The same parameters with separate layers: `layers_0`, `layers_1`, ... in place of `layers`.

    `forward` then runs them one by one, in a program that grows with depth, not in a loop over the
    stack, from which XLA on a CPU copies each layer before reading it. For decoding; the cache must
    be unstacked too, see `Cache.unstack`.
    """
    rest, layers = dict(params), params["layers"]
    del rest["layers"]
    number = len(jax.tree.leaves(layers)[0])
    return rest | {f"layers_{i}": jax.tree.map(lambda a, i=i: a[i], layers) for i in range(number)}


def forward(
    params: Params,
    config: ModelConfig,
    tokens: Integer[Array, "b t"],
    *,
    cache: Cache | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008
    capture: tuple[Any, ...] = (),
) -> Output:
    """Run the decoder; pure in `params`, `tokens`, `cache` and the closures of the hooks.

    Computed in the dtype of `params`, in full fp32 on GPUs too; norms, rotary embedding and softmax
    in fp32.

    Args:
        params: the tree of `init_params`, or of `unstack`.
        config: static.
        tokens: token ids; where they are traced, a text with an id out of range gives NaN.
        cache: continue after the tokens stored there; where its length is traced, tokens without
            room give NaN.
        hooks: functions applied to activations, queries, keys, values, weights.
        capture: sites (`parse_site`) to return, after the hooks.

    Raises:
        ValueError: there is no text or an empty one, a token is out of range, the text is longer
            than the window of the model, or the cache is of another model or batch or too small;
            or only one of `params` and `cache` is unstacked.
    """
    if cache is not None and isinstance(cache.layers, tuple) == ("layers" in params):
        raise ValueError("params and cache must both be stacked or both be unstacked.")
    check_inputs(config, tokens, cache)
    return Decoder(config, hooks, tuple(capture)).apply({"params": params}, tokens, cache)  # pyright: ignore[reportReturnType]


def run_layer(
    layer: Params,
    config: ModelConfig,
    x: Float[Array, "b t d"],
    number: Layer | int = 0,
    *,
    hooks: Hooks = Hooks(),  # noqa: B008
    capture: tuple[str, ...] = (),
) -> tuple[Float[Array, "b t d"], dict[str, Array]]:
    """One layer of the decoder, on texts from position 0.

    Args:
        layer: its parameters, those of `params["layers"]` without the leading axis.
        config: static.
        x: the residual stream before it.
        number: index of the layer, for the hooks.
        hooks: as for `forward`.
        capture: kinds of sites (see `Site`) to return, static.

    Returns:
        The residual stream after it, and the captured tensors by kind, [b, t, ...].
    """
    one = dataclasses.replace(config, num_hidden_layers=1)
    number = jnp.asarray(number)

    def at(function: Any) -> Any:
        """The hook with `number` as the layer index, in place of 0."""
        if function is None:
            return None
        return lambda *args: function(*args[:-2], number, args[-1])

    batch, tokens, _ = x.shape
    positions = jnp.broadcast_to(jnp.arange(tokens), (batch, tokens))
    seen = {kind: jnp.zeros((2, *x.shape[:2], *_shape(config, kind)), x.dtype) for kind in capture}
    module = DecoderLayer(one, Hooks(*map(at, hooks)), {kind: [0] for kind in capture}, 0.0)
    carry, _ = module.apply(  # pyright: ignore[reportGeneralTypeIssues]
        {"params": layer}, (x, seen, None), jnp.asarray(0), (positions, 0)
    )
    return carry[0], {kind: stack[0] for kind, stack in carry[1].items()}


def logits(params: Params, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
    """Logits of the next token from final hidden states, in fp32."""
    tied = "head" not in params
    head = params["embedding"] if tied else params["head"]
    # contracting the embedding's last axis: XLA would copy a transposed one in bf16
    axes = (((hidden.ndim - 1,), (1 if tied else 0,)), ((), ()))
    return jax.lax.dot_general(
        hidden, head.astype(hidden.dtype), axes, jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
