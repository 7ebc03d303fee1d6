"""How loading fails: one line that names the file and what is wrong in it; and the hub."""

import importlib.resources
import json
import os
import pickle
import subprocess
import sys

import gguf
import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import LLAMA3_ROPE, small_model, tokenizer

from isojax.data import load_text, windows
from isojax.models import capture_tensors, load_model, save_checkpoint, weight

MODEL = small_model(num_hidden_layers=2)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path, MODEL.config, MODEL.params)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def error_of(source, kind=ValueError):
    with pytest.raises(kind) as caught:
        load_model(str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_json(path, **changes):
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (fields | changes).items() if v is not ...}))


def edit_tensors(path, **changes):
    """Replace tensors by name (dots as two underscores); `...` takes one away."""
    tensors = load_file(path) | {name.replace("__", "."): x for name, x in changes.items()}
    save_file({name: x for name, x in tensors.items() if x is not ...}, path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model_type", "gpt2", "must be one of qwen2, qwen3, llama; got 'gpt2'"),
        ("model_type", ..., "got None"),
        ("hidden_size", ..., "positive number, got None"),
        ("hidden_size", float("nan"), "positive number, got nan"),
        ("num_hidden_layers", -2, "positive number, got -2"),
        ("num_attention_heads", 2.5, "whole number, got 2.5"),
        ("vocab_size", "300", "positive number, got '300'"),
        ("rope_theta", float("inf"), "positive number, got inf"),
        ("num_key_value_heads", 3, "must divide num_attention_heads=4, got 3"),
        ("hidden_act", "gelu", "'gelu' is not supported"),
        ("use_sliding_window", True, "True is not supported"),
        ("layer_types", ["full_attention", "sliding_attention"], "'sliding_attention' is not"),
        ("partial_rotary_factor", 0.5, "0.5 is not supported, only 1"),
        ("is_causal", False, "False is not supported"),
        ("attn_logit_softcapping", 50.0, "50.0 is not supported"),
        ("final_logit_softcapping", 30.0, "30.0 is not supported"),
        ("quantization_config", {"quant_method": "awq"}, "'awq'} is not supported"),
        ("attention_bias", "false", "true or false, got 'false'"),
        ("tie_word_embeddings", 1, "true or false, got 1"),
    ],
)
def test_a_wrong_field_of_the_configuration_is_named(folder, field, value, said):
    edit_json(folder / "config.json", **{field: value})
    message = error_of(folder)
    assert "config.json" in message and field in message and said in message


LLAMA3 = {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"type": "yarn", "factor": 4.0}, "rope_type must be default or llama3; got 'yarn'"),
        ({"rope_type": "linear", "factor": 2.0}, "rope_type must be default or llama3"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type must be default or llama3"),
        ({"rope_type": "default", "partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25"),
        ({"rope_type": "default", "rope_theta": "1e6"}, "rope_theta must be a positive number"),
        ({"full_attention": {"rope_type": "default"}}, "of full_attention alone"),
        ([1, 2], "must be an object"),
        (LLAMA3 | {"factor": 0}, "factor of rope scaling llama3 must be a positive number, got 0"),
        (LLAMA3 | {"original_max_position_embeddings": None}, "original_max_position_embeddings"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor must be below high_freq_factor=4.0"),
    ],
)
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_rotary_settings_that_the_decoder_has_not_are_refused(folder, field, rope, said):
    edit_json(folder / "config.json", **{field: rope})
    message = error_of(folder)
    assert "config.json: " in message and said in message


def test_rotary_settings_that_contradict_each_other_are_refused(folder):
    yarn = {"rope_type": "yarn", "factor": 4.0}
    edit_json(folder / "config.json", rope_parameters={"rope_theta": 1e4}, rope_scaling=yarn)
    assert "rope_scaling and rope_parameters differ" in error_of(folder)
    context = {"original_max_position_embeddings": 4096}
    edit_json(folder / "config.json", rope_parameters=None, rope_scaling=LLAMA3, **context)
    assert "original_max_position_embeddings=4096 is not" in error_of(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1},
        {"layer_types": ["full_attention"] * 2, "partial_rotary_factor": 1.0},
        {"attention_bias": None, "quantization_config": None, "hidden_act": "swish"},
        {"rope_scaling": None, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    ],
)
def test_fields_that_change_nothing_are_accepted(folder, fields):
    edit_json(folder / "config.json", **fields)
    assert load_model(str(folder)).config == MODEL.config


Q0 = "model__layers__0__self_attn__q_proj__weight"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({Q0: ...}, "is missing"),
        ({Q0: np.zeros((32, 31), "f4")}, "must have shape (32, 32), got (32, 31)"),
        ({Q0: np.zeros((32, 32), "i1")}, "must be of dtype F64, F32, F16, BF16; got I8"),
        ({"model__layers__7__mlp__up_proj__weight": np.zeros((64, 32), "f4")}, "has no place"),
        ({"model__layers__0__mlp__up_proj__bias": np.zeros(64, "f4")}, "has no place"),
    ],
)
def test_a_wrong_tensor_is_named(folder, changes, said):
    edit_tensors(folder / WEIGHTS, **changes)
    message = error_of(folder)
    (name,) = changes
    assert name.replace("__", ".") in message and said in message
    assert str(folder) in message and (WEIGHTS in message or "missing" in said)


def test_buffers_of_old_checkpoints_are_ignored(folder):
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    edit_tensors(folder / WEIGHTS, **{name: np.ones(4, "f4")})
    load_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json"])
@pytest.mark.parametrize("damage", ["empty", "random", "first bytes", "all but the last bytes"])
def test_a_damaged_file_is_named(folder, name, damage):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes({
        "empty": b"",
        "random": np.random.default_rng(0).bytes(3000),
        "first bytes": whole[:40],
        "all but the last bytes": whole[:-4],
    }[damage])  # fmt: skip
    assert str(folder / name) in error_of(folder)


def test_json_that_is_no_object_is_refused(folder):
    (folder / "config.json").write_text("[1, 2]")
    assert "config.json: must hold a JSON object, got list" in error_of(folder)


def test_an_absent_file_is_named(folder):
    (folder / "tokenizer.json").unlink()
    assert f"{folder}: holds no tokenizer" in error_of(folder, FileNotFoundError)
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").unlink()
    assert "config.json: no such file" in error_of(folder, FileNotFoundError)


def shard(folder, index):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../model.safetensors"}}, "got '../model.safetensors'"),
        ({"weight_map": {"a": "/etc/model.safetensors"}}, "got '/etc/model.safetensors'"),
        ({"weight_map": {"a": "shard.bin"}}, "got 'shard.bin'"),
        ({"weight_map": {"a": 3}}, "got '3'"),
        ({"weight_map": {}}, "must be an object"),
        ({}, "must be an object"),
    ],
)
def test_an_index_names_files_of_its_folder_only(folder, index, said):
    shard(folder, index)
    message = error_of(folder)
    assert INDEX in message and "weight_map" in message and said in message


def test_an_absent_shard_and_an_absent_tensor_of_a_shard_are_named(folder):
    shard(folder, {"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    message = error_of(folder, FileNotFoundError)
    assert INDEX in message and "names model-00002-of-00002.safetensors" in message
    (folder / INDEX).write_text('{"weight_map": {"a.b": "model-00001-of-00001.safetensors"}}')
    assert "model-00001-of-00001.safetensors: tensor a.b is missing" in error_of(folder)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_are_refused_and_not_run(folder):
    exploded = folder / "exploded"
    data = pickle.dumps(Bomb(exploded))
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(data)
    message = error_of(folder, FileNotFoundError)
    assert "pytorch_model.bin is a pickle" in message and "convert it to safetensors" in message
    for suffix in ("bin", "pt", "pth", "ckpt"):
        file = folder / f"model.{suffix}"
        file.write_bytes(data)
        assert f"{file.name} is a pickle" in error_of(file)
    (folder / WEIGHTS).write_bytes(data)
    error_of(folder)
    assert not exploded.exists()


def test_code_that_lies_in_a_folder_is_not_run(folder):
    exploded = folder / "exploded"
    (folder / "code.py").write_text(f"open({str(exploded)!r}, 'w')\nclass T: pass\n")
    auto_map = {"AutoTokenizer": ["code.T", None], "AutoModelForCausalLM": "code.T"}
    edit_json(folder / "config.json", auto_map=auto_map)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T", "auto_map": auto_map})
    )
    load_model(str(folder))
    (folder / "tokenizer.json").unlink()
    error_of(folder)
    assert not exploded.exists()


def test_vocabulary_files_alone_make_the_same_tokenizer(folder):
    want = load_model(str(folder)).tokenizer.encode("then this thing").ids
    tokenizer().model.save(str(folder))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    (folder / "tokenizer.json").unlink()
    assert load_model(str(folder)).tokenizer.encode("then this thing").ids == want


def test_a_tokenizer_does_not_cut_what_it_encodes(folder):
    made = tokenizer()
    made.enable_truncation(3)
    made.save(str(folder / "tokenizer.json"))
    assert len(load_model(str(folder)).tokenizer.encode("x" * 50).ids) == 50


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder):
    made = tokenizer()
    made.add_tokens([f"<{i}>" for i in range(50)])
    made.save(str(folder / "tokenizer.json"))
    message = error_of(folder)
    assert "tokenizer has 311 tokens" in message and "vocab_size=300" in message


@pytest.mark.parametrize(
    "source",
    ["./no/such", "/no/such", "~/no/such", "no\\such", "nosuch", "no/such/folder", "no/such.gguf",
     "../no", "{folder}/no", ""],
)  # fmt: skip
def test_a_path_that_does_not_exist_never_goes_to_the_network(source, folder, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("network")
    )
    source = source.format(folder=folder)
    if source:
        assert f"{source}: no such model file or folder" in error_of(source, FileNotFoundError)
    else:
        error_of(source, FileNotFoundError)


def test_a_relative_path_below_an_existing_folder_is_a_path(folder, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("network")
    )
    monkeypatch.chdir(folder.parent)
    assert "no such model" in error_of(f"{folder.name}/absent", FileNotFoundError)


def test_a_file_of_another_form_is_refused(folder):
    assert "give the folder" in error_of(folder / WEIGHTS)
    assert "config.json: a model file must be .gguf" in error_of(folder / "config.json")


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16; got 'int8'"):
        load_model(str(folder), dtype="int8")


def test_tiny_is_read_from_the_package(folder, tmp_path, monkeypatch):
    package = tmp_path / "package"
    monkeypatch.setattr(
        importlib.resources,
        "files",
        lambda name: package.joinpath(*name.split(".")[1:]),
    )
    with pytest.raises(FileNotFoundError, match="model tiny: this installation"):
        load_model("tiny")
    with pytest.raises(FileNotFoundError, match="text tiny: this installation"):
        load_text("tiny")
    tiny = package / "models" / "tiny"
    tiny.mkdir(parents=True)
    for name in ("config.json", WEIGHTS, "tokenizer.json"):
        (folder / name).rename(tiny / name)
    (tiny / "heldout.txt").write_text("held out")
    assert load_model("tiny").name == "tiny"
    assert load_text("tiny") == "held out"


def test_the_hub_is_read_from_its_cache_when_offline(folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--some--model"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    target = repository / "snapshots" / commit
    target.mkdir()
    for name in ("config.json", WEIGHTS, "tokenizer.json"):
        (folder / name).rename(target / name)
    script = (
        "from isojax.models import load_model\n"
        f"for source in ('some/model', 'some/model@{commit}', 'some/other'):\n"
        "    try: print(load_model(source).name)\n"
        "    except FileNotFoundError as error: print(error)\n"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    first, second, third = done.stdout.splitlines()
    assert first == second == "model"
    assert third.startswith("some/other: not found on the hub (")


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
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
              str: writer.add_string, list: writer.add_array}  # fmt: skip
    for key, value in metadata.items():
        if value is not None:
            adders[type(value)](key, value)
    for name, array in arrays.items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("general.architecture", "gemma", "must be one of qwen2, qwen3, llama; got 'gemma'"),
        ("llama.block_count", None, "positive int, got None"),
        ("llama.block_count", "two", "positive int, got 'two'"),
        ("llama.attention.head_count_kv", [1, 2], "positive int, got [1, 2]"),
        ("llama.attention.head_count_kv", 3, "must divide num_attention_heads=4, got 3"),
        ("llama.attention.layer_norm_rms_epsilon", -1.0, "positive float, got -1.0"),
        ("llama.attention.value_length", 16, "16 is not supported, only 8"),
        ("llama.rope.dimension_count", 4, "4 is not supported, only 8"),
        ("llama.rope.scaling.type", "yarn", "'yarn' is not supported"),
        ("llama.rope.scaling.factor", 4.0, "4.0 is not supported, only 1"),
        ("llama.rope.scale_linear", 2.0, "2.0 is not supported, only 1"),
        ("llama.rope.scaling.attn_factor", 1.5, "1.5 is not supported, only 1"),
        ("llama.attention.sliding_window", 4096, "4096 is not supported, only 0"),
        ("llama.attention.causal", False, "False is not supported"),
        ("llama.attention.clamp_kqv", 8.0, "8.0 is not supported"),
        ("llama.attention.max_alibi_bias", 8.0, "8.0 is not supported"),
        ("llama.attention.scale", 0.25, "0.25 is not supported"),
        ("llama.attn_logit_softcapping", 50.0, "50.0 is not supported"),
        ("llama.final_logit_softcapping", 30.0, "30.0 is not supported"),
        ("llama.embedding_scale", 12.0, "12.0 is not supported, only 1"),
        ("llama.residual_scale", 0.5, "0.5 is not supported, only 1"),
        ("llama.logit_scale", 0.5, "0.5 is not supported, only 1"),
        ("llama.use_parallel_residual", True, "True is not supported"),
        ("llama.expert_count", 8, "8 is not supported, only 0"),
        ("tokenizer.ggml.model", "llama", "must be one of gpt2; got 'llama'"),
        ("tokenizer.ggml.pre", "deepseek-llm", "got 'deepseek-llm'"),
        ("tokenizer.ggml.pre", None, "is missing"),
        ("tokenizer.ggml.tokens", None, "is missing"),
        ("tokenizer.ggml.tokens", [1, 2], "must be a list of strings"),
        ("tokenizer.ggml.merges", ["t h", "h"], "must be pairs of tokens"),
        ("tokenizer.ggml.merges", ["t h", "never seen"], "do not fit"),
        ("tokenizer.ggml.token_type", [1, 1], "one number for each of 261 tokens"),
    ],
)
def test_a_wrong_field_of_a_gguf_is_named(field, value, said, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, {field: value})
    message = error_of(path)
    assert str(path) in message and said in message
    assert field in message or "num_attention_heads" in said


def test_fields_of_a_gguf_that_change_nothing_are_accepted(tmp_path):
    write_gguf(tmp_path / "plain.gguf")
    neutral = {
        "llama.attention.sliding_window": 0, "llama.attention.causal": True,
        "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0,
        "llama.rope.dimension_count": 8, "llama.expert_count": 0, "llama.logit_scale": 1.0,
    }  # fmt: skip
    write_gguf(tmp_path / "same.gguf", neutral)
    plain, same = (load_model(str(tmp_path / f"{n}.gguf")) for n in ("plain", "same"))
    assert plain.config == same.config


def test_a_tokenizer_of_a_gguf_larger_than_its_vocabulary_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, tensors={"token_embd.weight": np.ones((260, 32), "f4")})
    message = error_of(path)
    assert str(path) in message and "has 261 tokens, more than vocab_size=260" in message


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("token_embd.weight", None, "is missing"),
        ("blk.0.ffn_up.weight", None, "is missing"),
        ("blk.0.ffn_up.weight", np.ones((64, 16), "f4"), "must have shape (64, 32), got (64, 16)"),
        ("blk.0.ffn_up.weight", np.ones((64, 32), "i1"), "has type I8, which is not supported"),
        ("blk.1.ffn_up.weight", np.ones((64, 32), "f4"), "has no place"),
        ("rope_freqs.weight", np.array([1, 2, 3, 4], "f4"), "is not the rescaling of Llama 3"),
    ],
)
def test_a_wrong_tensor_of_a_gguf_is_named(name, array, said, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, tensors={name: array})
    message = error_of(path)
    assert str(path) in message and name in message and said in message


def test_a_gguf_cut_off_anywhere_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path)
    load_model(str(path))
    whole = path.read_bytes()
    for size in (0, 3, 20, 100, 1000, 4000, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        assert f"{path}: not a readable GGUF file" in error_of(path), size


def test_a_gguf_of_noise_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path)
    head = path.read_bytes()[:24]
    noise = np.random.default_rng(0)
    for start in (b"", head[:8], head):
        path.write_bytes(start + noise.bytes(3000))
        assert f"{path}: not a readable GGUF file" in error_of(path)


def test_tensor_names_are_checked():
    tokens = np.arange(8, dtype=np.int32)
    for name, said in {
        "weight:wq:0": "must be one of q_proj",
        "weight:q_proj:2": "must be a number from 0 to 1",
        "hidden:3": "must be a number from 0 to 2",
        "logits": "must be one of hidden",
    }.items():
        with pytest.raises(ValueError) as caught:
            capture_tensors(MODEL, tokens, [name])
        assert name in str(caught.value) and said in str(caught.value)
    with pytest.raises(ValueError, match="layer must be from 0 to 1, got -1"):
        weight(MODEL.params, "q_proj", -1)


def test_text_files_are_read_as_they_are(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("a\r\nb \u00e9\n".encode())
    assert load_text(str(path)) == "a\r\nb \u00e9\n"


def test_a_text_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="text.txt: not UTF-8 .* at byte 3"):
        load_text(str(path))
    with pytest.raises(FileNotFoundError, match="nosuch: no such file"):
        load_text("nosuch")
    with pytest.raises(ValueError, match="split must be one of test, validation, train"):
        load_text("wikitext-2", split="dev")


def test_wikitext_rows_are_joined_by_blank_lines(monkeypatch):
    import datasets

    def fake(path, name, split):
        assert (path, name, split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "validation")
        return datasets.Dataset.from_dict({"text": ["", " = A = \n", "b\n"]})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert load_text("wikitext-2", split="validation") == "\n\n = A = \n\n\nb\n"

    def offline(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match=r"wikitext-2: cannot be fetched \(no network\)"):
        load_text("wikitext-2")


def test_windows_follow_each_other_from_the_start():
    assert windows(np.arange(10), 3, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="windows must be at most 3: .* 10 tokens"):
        windows(np.arange(10), 4, 3)
