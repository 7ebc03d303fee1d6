"""The KV cache: keys and values of the tokens read so far, exact or in packed codes.

A `Cache` is a stack of `LayerCache`, one a layer, each of two sides, keys and values. A side is
plain (`PlainSide`, the numbers themselves) or packed (`PackedSide`): its `Store` says by which
codec, whether keys are kept before or after the rotary embedding, and which tokens stay exact.
All is functional: `attend` returns the new layer beside its output.
"""

from isojax.kvcache.attention import Seen as Seen
from isojax.kvcache.attention import apply_rope as apply_rope
from isojax.kvcache.attention import causal_attention as causal_attention
from isojax.kvcache.cache import Cache as Cache
from isojax.kvcache.cache import LayerCache as LayerCache
from isojax.kvcache.cache import new_cache as new_cache
from isojax.kvcache.packed import PackedSide as PackedSide
from isojax.kvcache.plain import PlainSide as PlainSide
from isojax.kvcache.store import Store as Store
from isojax.kvcache.store import store as store
