"""How loading fails: one line that names the file and what is wrong in it; and the hub."""

import importlib.resources
import json
import pickle

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import LLAMA3_ROPE, edit_json, error_of_loading, saved, small_model, tokenizer

from isojax.data import load_text
from isojax.models import load_model

MODEL = small_model(num_hidden_layers=2)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path, MODEL)


def edit_tensors(path, **changes):
    """Replace tensors by name (dots as two underscores); `...` takes one away."""
    tensors = load_file(path) | {name.replace("__", "."): x for name, x in changes.items()}
    save_file({name: x for name, x in tensors.items() if x is not ...}, path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model_type", "gpt2", "must be one of qwen2, qwen3, llama, mistral; got 'gpt2'"),
        ("model_type", ..., "got None"),
        ("hidden_size", ..., "positive number, got None"),
        ("hidden_size", float("nan"), "positive number, got nan"),
        ("num_hidden_layers", -2, "positive number, got -2"),
        ("num_attention_heads", 2.5, "whole number, got 2.5"),
        ("vocab_size", "300", "positive number, got '300'"),
        ("rope_theta", float("inf"), "positive number, got inf"),
        ("num_key_value_heads", 3, "must divide num_attention_heads=4, got 3"),
        ("hidden_act", "gelu", "'gelu' is not supported"),
        ("layer_types", ["full_attention", "sliding_attention"], "'sliding_attention' is not"),
        ("partial_rotary_factor", 0.5, "0.5 is not supported, only 1"),
        ("is_causal", False, "False is not supported"),
        ("attn_logit_softcapping", 50.0, "50.0 is not supported"),
        ("final_logit_softcapping", 30.0, "30.0 is not supported"),
        ("quantization_config", {"quant_method": "awq"}, "quantized as 'awq' is not read"),
        ("attention_bias", "false", "true or false, got 'false'"),
        ("tie_word_embeddings", 1, "true or false, got 1"),
    ],
)
def test_a_wrong_field_of_the_configuration_is_named(folder, field, value, said):
    edit_json(folder / "config.json", **{field: value})
    message = error_of_loading(folder)
    assert "config.json" in message and field in message and said in message


LLAMA3 = {name: value for name, value in LLAMA3_ROPE.items() if name != "rope_theta"}


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"type": "yarn"}, "factor of rope scaling yarn must be a positive number, got None"),
        ({"type": "yarn", "factor": 4.0}, "original_max_position_embeddings of rope scaling yarn"),
        ({"type": "yarn", "factor": 4.0, "truncate": 1}, "truncate must be true or false, got 1"),
        (
            {"rope_type": "linear", "factor": "2"},
            "factor of rope scaling linear must be a positive",
        ),
        ({"rope_type": "dynamic", "factor": 2.0}, "must be one of default, llama3, yarn, linear"),
        ({"rope_type": ["yarn"]}, "must be one of default, llama3, yarn, linear; got ['yarn']"),
        ({"rope_type": "default", "partial_rotary_factor": 0.25}, "partial_rotary_factor=0.25"),
        ({"rope_type": "default", "rope_theta": "1e6"}, "rope_theta must be a positive number"),
        ({"full_attention": {"rope_type": "default"}}, "with only full_attention"),
        ([1, 2], "must be an object"),
        (LLAMA3 | {"factor": 0}, "factor of rope scaling llama3 must be a positive number, got 0"),
        (LLAMA3 | {"original_max_position_embeddings": None}, "original_max_position_embeddings"),
        (LLAMA3 | {"low_freq_factor": 4.0}, "low_freq_factor must be below high_freq_factor=4.0"),
    ],
)
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_rotary_settings_that_the_decoder_has_not_are_refused(folder, field, rope, said):
    edit_json(folder / "config.json", **{field: rope})
    message = error_of_loading(folder)
    assert "config.json: " in message and said in message


def test_rotary_settings_that_contradict_each_other_are_refused(folder):
    yarn = {"rope_type": "yarn", "factor": 4.0}
    edit_json(folder / "config.json", rope_parameters={"rope_theta": 1e4}, rope_scaling=yarn)
    assert "rope_scaling and rope_parameters differ" in error_of_loading(folder)
    context = {"original_max_position_embeddings": 4096}
    edit_json(folder / "config.json", rope_parameters=None, rope_scaling=LLAMA3, **context)
    assert "original_max_position_embeddings=4096 is not" in error_of_loading(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
        {"use_sliding_window": True, "layer_types": ["full_attention"] * 2, "sliding_window": 16},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
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
        ({"model__layers__0__mlp__up_proj__bias": np.ones(64, "f4")}, "has no place"),
    ],
)
def test_a_wrong_tensor_is_named(folder, changes, said):
    edit_tensors(folder / WEIGHTS, **changes)
    message = error_of_loading(folder)
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
    assert str(folder / name) in error_of_loading(folder)


def test_json_that_is_no_object_is_refused(folder):
    (folder / "config.json").write_text("[1, 2]")
    assert "config.json: must hold a JSON object, got list" in error_of_loading(folder)


def test_an_absent_file_is_named(folder):
    (folder / "tokenizer.json").unlink()
    assert f"{folder}: holds no tokenizer" in error_of_loading(folder, FileNotFoundError)
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").unlink()
    assert "config.json: no such file" in error_of_loading(folder, FileNotFoundError)


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
    message = error_of_loading(folder)
    assert INDEX in message and "weight_map" in message and said in message


def test_an_absent_shard_and_an_absent_tensor_of_a_shard_are_named(folder):
    shard(folder, {"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    message = error_of_loading(folder, FileNotFoundError)
    assert INDEX in message and "names model-00002-of-00002.safetensors" in message
    (folder / INDEX).write_text('{"weight_map": {"a.b": "model-00001-of-00001.safetensors"}}')
    assert "model-00001-of-00001.safetensors: tensor a.b is missing" in error_of_loading(folder)


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
    message = error_of_loading(folder, FileNotFoundError)
    assert "pytorch_model.bin is a pickle" in message and "convert it to safetensors" in message
    for suffix in ("bin", "pt", "pth", "ckpt"):
        file = folder / f"model.{suffix}"
        file.write_bytes(data)
        assert f"{file.name} is a pickle" in error_of_loading(file)
    (folder / WEIGHTS).write_bytes(data)
    error_of_loading(folder)
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
    error_of_loading(folder)
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
        error = error_of_loading(source, FileNotFoundError)
        assert f"{source}: no such model file or folder" in error and "tiny, smollm2" in error
    else:
        error_of_loading(source, FileNotFoundError)


def test_a_relative_path_below_an_existing_folder_is_a_path(folder, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("network")
    )
    monkeypatch.chdir(folder.parent)
    assert "no such model" in error_of_loading(f"{folder.name}/absent", FileNotFoundError)


def test_a_file_of_another_form_is_refused(folder):
    assert "give the folder" in error_of_loading(folder / WEIGHTS)
    assert "config.json: a model file must be .gguf" in error_of_loading(folder / "config.json")


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


def test_the_hub_is_read_from_its_cache_when_offline(folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--some--model"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    target = repository / "snapshots" / commit
    target.mkdir()
    for name in ("config.json", WEIGHTS, "tokenizer.json"):
        (folder / name).rename(target / name)
    # as the variables HF_HUB_CACHE and HF_HUB_OFFLINE set them at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert load_model("some/model").name == load_model(f"some/model@{commit}").name == "model"
    error = error_of_loading("some/other", FileNotFoundError)
    assert error.startswith("some/other: not found on the hub (")


HUB_ERRORS = [
    huggingface_hub.errors.EntryNotFoundError("no\nsuch entry"),
    huggingface_hub.errors.HFValidationError("no\nname"),
    huggingface_hub.errors.LocalEntryNotFoundError("no\nnetwork"),
    huggingface_hub.errors.OfflineModeIsEnabled("off\nline"),
    TimeoutError("too\nlate"),
    OSError(28, "No space left on device"),
    RuntimeError("Data processing\nerror: CAS service"),
]


@pytest.mark.parametrize("error", HUB_ERRORS, ids=lambda error: type(error).__name__)
def test_what_fails_at_the_hub_is_one_line(error, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = error_of_loading("some/model", FileNotFoundError)
    reason = " ".join(str(error).split())
    assert message.startswith(f"some/model: not found on the hub ({reason}); give a folder")


@pytest.mark.parametrize("error", [KeyError("x"), AttributeError("x"), KeyboardInterrupt()])
def test_a_defect_behind_the_hub_is_not_taken_for_a_missing_model(error, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(type(error)):
        load_model("some/model")
