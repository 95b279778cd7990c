"""Which LoRA adapters are let in, by their files alone."""

import json
from types import SimpleNamespace

import pytest
import torch
from adapters import PREFIX, PROJECTIONS, skeleton, write
from modules import engine_config
from safetensors.torch import load_file, save_file
from vllm.exceptions import VLLMValidationError

from diffusiongemma_vllm.runner.admission import check_adapter

LAYER = r"model\.decoder\.layers\.0\."


@pytest.fixture(scope="module")
def config(checkpoint):
    return engine_config(checkpoint, enable_lora=True, max_lora_rank=8)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    return skeleton(checkpoint)


@pytest.fixture
def refusal(config, theirs, tmp_path):
    """The sentence for an adapter; None where it is let in.  edit: changes its tensors."""

    def find(*, edit=None, config=config, **options):
        folder = write(tmp_path / "mine", theirs, seed=0, **options)
        if edit is not None:
            tensors = load_file(folder / "adapter_model.safetensors")
            save_file(edit(tensors), folder / "adapter_model.safetensors")
        try:
            check_adapter(SimpleNamespace(lora_name="mine", lora_path=str(folder)), config)
        except VLLMValidationError as error:
            assert "LoRA adapter 'mine'" in str(error)
            return str(error)

    return find


def test_attention_and_dense_mlps_are_let_in(refusal):
    assert refusal() is None
    assert refusal(modules=LAYER + "self_attn.q_proj", rank=8) is None
    assert refusal(rank=2, rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 9}) is None


@pytest.mark.parametrize("module", [
    r"lm_head", LAYER + r"router\.proj", r"model\.encoder\.language_model\.layers\.0\..*q_proj",
    r"model\.encoder\.vision_tower\..*linear", r"model\.encoder\..*\.embedding_projection",
])
def test_other_layers_are_refused(refusal, module):
    said = refusal(modules=module)
    assert "it changes " in said and "served are adapters of attention" in said


@pytest.mark.parametrize("name", [
    "model.decoder.layers.0.experts.lora_A.weight",
    "model.decoder.layers.0.experts.base_layer.lora_B.weight",
    "model.decoder.embed_tokens.lora_embedding_A",
    "model.decoder.layers.2.self_attn.v_proj.lora_A.weight",  # a global layer has none
    "model.decoder.layers.3.self_attn.q_proj.lora_A.weight",  # there are three layers
])
def test_other_parameters_are_refused(refusal, name):
    said = refusal(edit=lambda tensors: tensors | {PREFIX + name: torch.zeros(4, 64)})
    assert f"it changes {name.split('.lora_')[0]};" in said


def test_every_other_layer_is_named_up_to_a_few(refusal):
    assert "and 3 more" in refusal(modules=r"(.*\.router\.proj|lm_head)")


def shorter(tensors):
    return {name: x[:, :-1].contiguous() if "lora_A" in name else x for name, x in tensors.items()}


def one_of_two(tensors):
    return {name: x for name, x in tensors.items() if "lora_A" in name}


@pytest.mark.parametrize(("options", "reason"), [
    (dict(rank=16), "LoRA rank 16 is greater than max_lora_rank 8"),
    (dict(rank_pattern={"q_proj": 16}), "LoRA rank 16 is greater than max_lora_rank 8"),
    (dict(r=2), "must have shape (2, 64), found (4, 64)"),
    (dict(edit=shorter), "must have shape (4, 64), found (4, 63)"),
    (dict(edit=one_of_two), "lora_B.weight must have shape (128, 4), found None"),
    (dict(edit=lambda tensors: {}), "it is empty"),
    (dict(use_dora=True), "DoRA"),
    (dict(modules_to_save=["lm_head"]), "modules_to_save"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_adapters_that_cannot_be_honoured_are_refused(refusal, options, reason):
    assert reason in refusal(**{"modules": LAYER + "self_attn.q_proj"} | options)


def test_files_that_are_not_there_or_broken(config, tmp_path):
    def find(folder):
        with pytest.raises(VLLMValidationError) as error:
            check_adapter(SimpleNamespace(lora_name="mine", lora_path=str(folder)), config)
        return str(error.value)

    assert "adapter_config.json" in find(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    assert "adapter_model.safetensors" in find(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_text("?")
    assert "Missing required configuration fields" in find(tmp_path)
    whole = {"r": 4, "lora_alpha": 4, "target_modules": "q_proj"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(whole))
    assert "cannot be read" in find(tmp_path)


# What a server wraps.


def test_nothing_else_is_wrapped(config):
    assert len(config.lora_config.target_modules) == 3 * 4 + 2
    assert all(".self_attn." in name or "mlp" in name or "conditioning" in name
               for name in config.lora_config.target_modules)


def test_a_server_may_wrap_less(checkpoint, refusal):
    few = engine_config(checkpoint, enable_lora=True, lora_target_modules=["k_proj", "o_proj"])
    assert {name.split(".")[-1] for name in few.lora_config.target_modules} == {
        "qkv_proj", "o_proj"
    }
    assert refusal(config=few, modules=LAYER + "self_attn.o_proj") is None
    said = refusal(config=few, modules=PROJECTIONS)
    assert "mlp.gate_proj" in said and "as far as --lora-target-modules allows" in said


@pytest.mark.parametrize(("options", "reason"), [
    (dict(lora_target_modules=["experts"]), "--lora-target-modules experts: only q_proj"),
    (dict(enable_moe_shared_loras=True), "drop --enable-moe-shared-loras"),
    (dict(enable_mixed_moe_lora_format=True), "drop --enable-mixed-moe-lora-format"),
    (dict(enable_tower_connector_lora=True), "drop --enable-tower-connector-lora"),
    (dict(max_lora_cls_labels=2), "drop --max-lora-cls-labels"),
])
def test_what_cannot_be_wrapped_is_refused(checkpoint, options, reason):
    with pytest.raises(ValueError, match=reason):
        engine_config(checkpoint, enable_lora=True, **options)
