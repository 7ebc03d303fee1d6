"""Which files make a model: folders of one GGUF, split files, and what a checkpoint keeps."""

import json
import os
import stat

import gguf
import jax
import numpy as np
import pytest
from gguf_files import write_gguf, write_model
from small_models import TEXT, error_of_loading, small_model, tokenizer, torch_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from isojax.data import load_text
from isojax.models import encode, load_model, save_checkpoint

MODEL = small_model(num_hidden_layers=2)


def split(path, parts):
    """Cut a GGUF file in parts, in the form of llama.cpp's gguf-split."""
    reader = gguf.GGUFReader(path)
    stem, each = path.with_suffix(""), -(-len(reader.tensors) // parts)
    files = []
    for number in range(parts):
        files.append(path.parent / f"{stem.name}-{number + 1:05d}-of-{parts:05d}.gguf")
        writer = gguf.GGUFWriter(files[-1], "llama")
        for key, field in reader.fields.items():
            if number or key.startswith("GGUF.") or key == "general.architecture":
                continue
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * each : (number + 1) * each]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


def same(a, b):
    assert a.config == b.config
    assert jax.tree.all(jax.tree.map(np.array_equal, a.params, b.params))
    assert encode(a.tokenizer, TEXT).tolist() == encode(b.tokenizer, TEXT).tolist()


@pytest.fixture
def parts(tmp_path):
    write_model(tmp_path / "m.gguf", torch_model("llama", layers=1))
    return split(tmp_path / "m.gguf", 3)


def test_any_part_of_a_split_file_stands_for_all(parts, tmp_path):
    whole = load_model(str(tmp_path / "m.gguf"))
    for part in parts:
        same(load_model(str(part)), whole)
    (tmp_path / "m.gguf").unlink()
    same(load_model(str(tmp_path)), whole)  # and so does the folder


def test_a_part_that_is_not_there_is_named(parts):
    parts[1].unlink()
    for part in (parts[0], parts[2]):
        message = error_of_loading(part, FileNotFoundError)
        assert str(part) in message and f"one of 3 parts, of which {parts[1].name}" in message


def test_a_part_by_another_name_says_what_it_is(parts, tmp_path):
    parts[1].rename(tmp_path / "renamed.gguf")
    message = error_of_loading(tmp_path / "renamed.gguf")
    assert "renamed.gguf: is one part of a file split in 3" in message


@pytest.mark.parametrize("name", ["m-00000-of-00000", "m-00005-of-00002", "m-00001-of-00001"])
def test_a_name_that_counts_wrong_is_a_name(name, tmp_path):
    write_gguf(tmp_path / f"{name}.gguf")
    assert load_model(str(tmp_path / f"{name}.gguf")).name == f"{name}.gguf"


def test_parts_in_the_wrong_order_and_of_other_models_are_refused(parts):
    parts[1].rename(parts[1].with_suffix(".other"))
    parts[2].rename(parts[1])
    parts[1].with_suffix(".other").rename(parts[2])
    message = error_of_loading(parts[0])
    assert f"{parts[1]}: must be part 1 of 3" in message and "split.no=2" in message


def test_a_part_with_another_number_of_tensors_is_refused(parts, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write_model(other / "m.gguf", torch_model("llama", layers=2))
    split(other / "m.gguf", 3)[2].replace(parts[2])
    message = error_of_loading(parts[0])
    assert "is there twice" in message or "split.tensors.count" in message


def test_a_folder_of_one_gguf_is_that_model_in_any_case_of_letters(tmp_path):
    write_gguf(tmp_path / "Model.GGUF")
    (tmp_path / "config.json").write_text("{}")  # as the hub's folders of GGUF files have it
    (tmp_path / "README.md").write_text("text")
    folder, file = load_model(str(tmp_path)), load_model(str(tmp_path / "Model.GGUF"))
    same(folder, file)
    assert folder.name == file.name == "Model.GGUF"
    write_gguf(tmp_path / "b.gguf")
    message = error_of_loading(tmp_path)
    assert f"{tmp_path}: holds 2 models (Model.GGUF, b.gguf); give the file of one" in message


def test_safetensors_come_before_a_gguf_beside_them(tmp_path):
    save_checkpoint(tmp_path, MODEL.config, MODEL.params, like=MODEL)
    write_gguf(tmp_path / "m.gguf")
    assert load_model(str(tmp_path)).config == MODEL.config


TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def rich(folder):
    """A folder with all that the hub's have, written by transformers."""
    model = torch_model("qwen2-tied", layers=1)
    model.config.update({"eos_token_id": 260, "bos_token_id": 256, "pad_token_id": 260})
    settings = {"eos_token_id": [260, 5], "temperature": 0.7, "do_sample": True}
    model.generation_config = GenerationConfig(**settings)
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|end|>", "pad_token": "<|end|>", "model_max_length": 99}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_a_saved_checkpoint_keeps_what_came_with_the_model(tmp_path):
    source = rich(tmp_path / "torch")
    ours = load_model(str(source))
    save_checkpoint(tmp_path / "ours", ours.config, ours.params, like=ours)
    for folder in (source, tmp_path / "ours"):
        config = AutoConfig.from_pretrained(folder)
        assert config.max_position_embeddings == 16384
        assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (260, 256, 260)
        settings = GenerationConfig.from_pretrained(folder)
        assert settings.eos_token_id == [260, 5] and settings.temperature == 0.7
        made = AutoTokenizer.from_pretrained(folder)
        assert made.chat_template == TEMPLATE and made.eos_token == "<|end|>"
        assert made(TEXT)["input_ids"] == encode(ours.tokenizer, TEXT).tolist()
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    same(load_model(str(tmp_path / "ours")), ours)


def test_a_checkpoint_of_a_gguf_keeps_its_special_tokens_and_template(tmp_path):
    fields = {
        "llama.context_length": 777, "tokenizer.ggml.eos_token_id": 260,
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.ggml.token_type": [1] * 260 + [int(gguf.TokenType.CONTROL)],
    }  # fmt: skip
    write_gguf(tmp_path / "m.gguf", fields)
    ours = load_model(str(tmp_path / "m.gguf"))
    save_checkpoint(tmp_path / "ours", ours.config, ours.params, like=ours)
    config = AutoConfig.from_pretrained(tmp_path / "ours")
    assert config.max_position_embeddings == 777 and config.eos_token_id == 260
    assert GenerationConfig.from_pretrained(tmp_path / "ours").eos_token_id == 260
    made = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert made.chat_template == TEMPLATE and made.eos_token == "<|end|>"
    same(load_model(str(tmp_path / "ours")), ours)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_that_the_umask_says(umask, tmp_path):
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path, MODEL.config, MODEL.params, like=MODEL)
    finally:
        os.umask(before)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file.name


def test_a_tokenizer_may_be_larger_than_the_vocabulary(tmp_path):
    """A number beyond it is an error where it is used; see test_models_inputs."""
    made = tokenizer()
    made.add_tokens([f"<{i}>" for i in range(50)])
    save_checkpoint(tmp_path, MODEL.config, MODEL.params)
    made.save(str(tmp_path / "tokenizer.json"))
    assert encode(load_model(str(tmp_path)).tokenizer, "<49>").tolist() == [310]
    write_gguf(tmp_path / "m.gguf", tensors={"token_embd.weight": np.ones((260, 32), "f4")})
    assert load_model(str(tmp_path / "m.gguf")).config.vocab_size == 260


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "text").write_bytes("\ufefftext \ufeff".encode())
    assert load_text(str(tmp_path / "text")) == "text \ufeff"
