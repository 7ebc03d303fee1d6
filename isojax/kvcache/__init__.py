"""The KV cache: keys and values of the tokens read so far, exact or in packed codes.

A `Cache` is a stack of `LayerCache`, one per layer, each with two sides, keys and values. A side
is plain (`PlainSide`, the vectors themselves) or packed (`PackedSide`). The `Store` of a packed
side fixes the codec, whether keys are stored before or after the rotary embedding, and which
tokens stay exact. All is functional: `attend` returns the new layer together with its output.
"""

from isojax.kvcache.attention import Seen, apply_rope, causal_attention
from isojax.kvcache.cache import Cache, LayerCache, new_cache
from isojax.kvcache.packed import PackedSide
from isojax.kvcache.plain import PlainSide
from isojax.kvcache.store import Store, store

__all__ = [
    "Cache",
    "LayerCache",
    "PackedSide",
    "PlainSide",
    "Seen",
    "Store",
    "apply_rope",
    "causal_attention",
    "new_cache",
    "store",
]
