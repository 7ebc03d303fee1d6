"""GGUF files for tests: of metadata and tensors alone, and of torch models."""

import gguf
import numpy as np
from small_models import tokenizer

ADDERS = {
    bool: gguf.GGUFWriter.add_bool,
    int: gguf.GGUFWriter.add_uint32,
    float: gguf.GGUFWriter.add_float32,
    str: gguf.GGUFWriter.add_string,
    list: gguf.GGUFWriter.add_array,
}
LAYER = {
    "attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32),
    "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32),
    "ffn_down": (32, 64),
}  # fmt: skip


def write_gguf(path, fields=(), tensors=()):
    """A llama of one layer; `fields` and `tensors` replace its own, None takes one away."""
    vocab = tokenizer().get_vocab()
    metadata = {
        "llama.block_count": 1, "llama.embedding_length": 32, "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(vocab, key=vocab.__getitem__),
        "tokenizer.ggml.merges": ["t h", "th e", "\u0120 t", "i n"],
    } | dict(fields)  # fmt: skip
    shapes = {f"blk.0.{name}.weight": shape for name, shape in LAYER.items()}
    shapes |= {"token_embd.weight": (300, 32), "output_norm.weight": (32,)}
    arrays = {name: np.ones(shape, "f4") for name, shape in shapes.items()} | dict(tensors)
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", "llama"))
    for key, value in metadata.items():
        if value is not None:
            ADDERS[type(value)](writer, key, value)
    for name, array in arrays.items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ARCH = {name: getattr(gguf.MODEL_ARCH, name.upper()) for name in ("qwen2", "qwen3", "llama")}


def pair_up(x, heads):
    """llama.cpp's order of the rotary channels of a llama: halves become neighbours."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def rope_divisors(config):
    """As llama.cpp's converter computes them for Llama 3."""
    rope, half = config.rope_parameters, config.head_dim // 2
    divisors = []
    for i in range(half):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / half)
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        smooth = (turns - low) / (high - low)
        blend = 1 / ((1 - smooth) / factor + smooth)
        divisors.append(factor if turns < low else 1.0 if turns > high else blend)
    return np.array(divisors, np.float32)


def write_tokenizer(writer, made, pre, types=None):
    vocab = sorted(made.get_vocab(), key=made.token_to_id)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab)
    writer.add_token_types(types or [1] * (len(vocab) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h", "th e", "\u0120 t", "i n"])


def write_model(
    path, model, kind=gguf.GGMLQuantizationType.F32, pre="gpt-2", types=None, fields=()
):
    """Write a torch model the way llama.cpp's converter does, by gguf's own table of names."""
    config = model.config
    family = {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_divisors(config))
    for key, value in dict(fields).items():
        ADDERS[type(value)](writer, f"{family}.{key}", value)
    write_tokenizer(writer, tokenizer(), pre, types)
    names = gguf.get_tensor_name_map(ARCH[family], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for full_name, tensor in model.state_dict().items():
        name, suffix = full_name.rsplit(".", 1)
        if name == "lm_head" and config.tie_word_embeddings:
            continue
        x = tensor.numpy()
        projection = name.rsplit(".", 1)[-1]
        if family == "llama" and projection in heads:
            x = pair_up(x, heads[projection])
        stored = kind if x.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(
            f"{names.get_name(name)}.{suffix}", gguf.quants.quantize(x, stored), raw_dtype=stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
