"""The checks of a checkpoint's files, case by case."""

import copy
import json
import os
from types import SimpleNamespace

import header
import pytest

from diffusiongemma_vllm import checkpoint as files

FULL_ROPE = header.TEXT["rope_parameters"]["full_attention"]


def changed(changes):
    """The real config with ``changes`` of its text config, or of itself below ``top``."""
    config = copy.deepcopy(header.CONFIG)
    top = changes.get("top", {})
    text = {name: value for name, value in changes.items() if name != "top"}
    for owner, fields in ((config["text_config"], text), (config, top)):
        for name, value in fields.items():
            if value is None:
                owner.pop(name)
            else:
                owner[name] = value
    return config


def test_the_real_config_passes():
    files.check_config(header.CONFIG)


def test_what_transformers_saves_passes(checkpoint):
    """It writes the full layers' sizes as ``per_layer_config``."""
    config = files.read_json(checkpoint / "config.json")
    assert "per_layer_config" in config["text_config"]
    files.check_config(config)


BAD = [
    ({"num_attention_heads": 12}, "num_attention_heads must be a multiple of the 8 key heads"),
    ({"num_global_key_value_heads": 3}, "multiple of the 3 key heads of layer 5, found 16"),
    ({"num_global_key_value_heads": "x"}, "num_global_key_value_heads must be a whole number"),
    ({"global_head_dim": "x"}, "global_head_dim must be a whole number above 0, found 'x'"),
    ({"per_layer_config": [1]}, r"per_layer_config must be an object, found \[1\]"),
    ({"per_layer_config": {"5": 1}}, "per_layer_config '5' must be an object, found 1"),
    (
        {"per_layer_config": {"5": {"num_key_value_heads": 0}}},
        "per_layer_config '5': num_key_value_heads must be a whole number above 0, found 0",
    ),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number above 0, found nan"),
    ({"num_attention_heads": "16"}, "num_attention_heads must be a whole number above 0"),
    ({"num_attention_heads": True}, "num_attention_heads must be a whole number above 0"),
    ({"num_key_value_heads": 0}, "num_key_value_heads must be a whole number above 0, found 0"),
    ({"head_dim": 255}, "the head_dim of layer 0 must be even, found 255"),
    ({"layer_types": None}, "layer_types must be a list of .*, found nothing"),
    ({"layer_types": ["sliding_attention", "linear"]}, "layer_types must be a list of"),
    ({"num_hidden_layers": 31}, "layer_types must name num_hidden_layers = 31 layers"),
    ({"layer_types": ["sliding_attention"] * 30}, "the last of layer_types must be 'full_att"),
    ({"num_experts": None}, "num_experts must be a whole number above 0, found nothing"),
    ({"top_k_experts": 129}, "top_k_experts must be at most num_experts, 128, found 129"),
    ({"sliding_window": 0}, "sliding_window must be a whole number above 0, found 0"),
    ({"final_logit_softcapping": 0.0}, "final_logit_softcapping must be a number above 0"),
    ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be a number above 0, found '1e-6'"),
    ({"hidden_activation": "silu"}, 'hidden_activation must be "gelu_pytorch_tanh", found \'silu'),
    ({"attention_bias": True}, "attention_bias must be false, found True"),
    ({"use_bidirectional_attention": "all"}, 'use_bidirectional_attention must be "vision"'),
    ({"tie_word_embeddings": False}, "tie_word_embeddings must be true, found False"),
    ({"rope_parameters": None}, "rope_parameters must have an object 'full_attention'"),
    ({"rope_parameters": {"full_attention": FULL_ROPE}}, "have an object 'sliding_attention'"),
    (
        {"rope_parameters": {"full_attention": FULL_ROPE | {"rope_type": "yarn"}}},
        "'full_attention': rope_type must be 'default' or 'proportional', found 'yarn'",
    ),
    (
        {"rope_parameters": {"full_attention": FULL_ROPE | {"rope_theta": 0}}},
        "rope_theta must be a number above 0, found 0",
    ),
    ({"top": {"canvas_length": 0}}, "canvas_length must be a whole number above 0, found 0"),
    ({"top": {"canvas_length": None}}, "canvas_length must be a whole number above 0, found noth"),
    ({"top": {"canvas_length": "256"}}, "canvas_length must be a whole number .*, found '256'"),
    ({"top": {"text_config": None}}, "text_config must be an object, found nothing"),
    ({"top": {"tie_word_embeddings": False}}, "tie_word_embeddings must be true"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD, ids=lambda x: x if type(x) is str else "")
def test_a_wrong_field_is_named_with_the_fix(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        files.check_config(changed(changes), "/models/x/config.json")
    assert str(error.value).startswith("/models/x/config.json: ")
    assert "take the file from the checkpoint's own repository" in str(error.value)


def test_a_global_head_dim_of_null_is_named():
    text = header.CONFIG["text_config"] | {"global_head_dim": None}
    with pytest.raises(ValueError, match="global_head_dim must be a whole number above 0, found n"):
        files.check_config(header.CONFIG | {"text_config": text})


def test_overrides_count(checkpoint, copy):
    """What --hf-overrides mends is not refused, what it breaks is."""
    path = copy / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["top_k_experts"] = 9
    path.write_text(json.dumps(config))
    files.check(engine_args(copy, hf_overrides={"text_config": {"top_k_experts": 2}}))
    with pytest.raises(ValueError, match="top_k_experts"):
        files.check(engine_args(checkpoint, hf_overrides={"text_config": {"top_k_experts": 9}}))


def engine_args(model, **fields):
    args = dict(
        model=str(model), model_weights="", hf_config_path=None, revision=None, hf_overrides={},
        generation_config="auto", override_generation_config={}, tokenizer=None,
        tokenizer_mode="auto", skip_tokenizer_init=True,
    )
    return SimpleNamespace(**args | fields)


def test_whole_files_pass(checkpoint):
    files.check_weights(checkpoint)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        (0, "is cut off in its header, at 0 bytes"),
        (7, "is cut off in its header, at 7 bytes"),
        (100, "is cut off in its header, at 100 bytes"),
        (100_000, r"has 100000 bytes where its header says \d+"),
        (10_000_000, r"has 10000000 bytes where its header says \d+"),
    ],
)
def test_a_file_of_the_wrong_size_is_named(copy, size, sentence):
    os.truncate(copy / "model.safetensors", size)
    with pytest.raises(ValueError, match=f"model.safetensors {sentence}: download the file again"):
        files.check_weights(copy)


def test_a_file_without_a_header_is_named(copy):
    path = copy / "model.safetensors"
    path.write_bytes((4).to_bytes(8, "little") + b"\xff\xff{}" + b"x" * 100)
    with pytest.raises(ValueError, match="model.safetensors has no safetensors header: download"):
        files.check_weights(copy)


def test_a_git_lfs_pointer_is_named(copy):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (copy / "model.safetensors").write_text(text)
    with pytest.raises(ValueError, match="model.safetensors is a Git LFS pointer.*git lfs pull"):
        files.check_weights(copy)


def test_a_shard_that_is_not_there_is_named(copy):
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model.safetensors"}}
    (copy / files.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json names model-2.safetensors, which is not in"):
        files.check_weights(copy)


def test_a_folder_without_weights_is_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*.safetensors file: download the weights"):
        files.check_weights(copy)
    files.check(engine_args(copy), load_format="dummy")


def test_a_folder_without_a_tokenizer_is_named(checkpoint, copy):
    """transformers would make an empty one, and every text one unknown token."""
    def check(model, **fields):
        files.check(engine_args(model, skip_tokenizer_init=False, **fields))

    sentence = "holds no tokenizer.json: download the tokenizer"
    with pytest.raises(ValueError, match=f"copy {sentence} .*, or serve with --tokenizer"):
        check(copy)
    check(copy, tokenizer="google/gemma")
    check(copy, tokenizer_mode="made_up")
    (copy / "tokenizer.json").write_text("{}")
    check(copy)
    check(checkpoint, tokenizer=str(copy))
    with pytest.raises(ValueError, match=f"random {sentence}"):
        check(copy, tokenizer=str(checkpoint))


def test_the_generation_config_with_overrides(checkpoint, copy):
    assert files.generation_config(engine_args(checkpoint))["t_max"] == 0.8
    overridden = engine_args(checkpoint, override_generation_config={"t_max": 0.9})
    assert files.generation_config(overridden)["t_max"] == 0.9
    (copy / "generation_config.json").unlink()
    assert files.generation_config(engine_args(copy)) == {}
    elsewhere = engine_args(copy, generation_config=str(checkpoint))
    assert files.generation_config(elsewhere)["t_max"] == 0.8


def test_a_generation_config_that_is_not_json_is_named(copy):
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match="generation_config.json is not valid JSON .*download"):
        files.generation_config(engine_args(copy))
    (copy / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match="generation_config.json: the file must hold an object"):
        files.generation_config(engine_args(copy))
