"""The KV cache: keys and values of the tokens read so far, exact or in packed codes.

A `Cache` is a stack of `LayerCache`, one a layer, each of two sides, keys and values. A side is
plain (`PlainSide`, the numbers themselves) or packed (`PackedSide`): its `Store` says by which
codec, whether keys are kept before or after the rotary embedding, and which tokens stay exact.
All is functional: `attend` returns the new layer beside its output.
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
