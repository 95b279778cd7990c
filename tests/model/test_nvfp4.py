"""NVIDIA's NVFP4 layout: every tensor has its place, and what cannot be is named."""

import re

import header
import pytest
import torch
from modules import building, edit_json, empty, engine_config

from diffusiongemma_vllm import quantisation
from diffusiongemma_vllm.model.experts import Nvfp4Experts
from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.model.share import Share
from diffusiongemma_vllm.nvfp4 import NAME

DTYPES = {
    "BF16": torch.bfloat16, "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32,
}
EXPERT = "model.decoder.layers.7.experts.5"
LAYERS = 12  # of a shorter model, in which something is wrong; the last is a full one


def build(folder, **changes):
    """The model of NVIDIA's checkpoint in the real shape, on the meta device."""
    header.write(folder, quantization_config=header.QUANTIZATION, **changes)
    config = engine_config(folder, load_format="dummy", dtype="bfloat16")
    assert config.model_config.quantization == NAME
    with building(config, "meta"):
        return empty(config)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A model of the first layers, and the checkpoint's tensors for it."""
    kinds = header.TEXT["layer_types"][:LAYERS]
    text = header.TEXT | {"num_hidden_layers": LAYERS, "layer_types": kinds}
    layer = re.compile(r"model\.(?:decoder|encoder\.language_model)\.layers\.(\d+)\.")
    tensors = {
        name: tensor for name, tensor in header.nvfp4_tensors().items()
        if not (found := layer.match(name)) or int(found[1]) < LAYERS
    }
    return build(tmp_path_factory.mktemp("short"), text_config=text), tensors


def meta(tensors):
    for name, (shape, kind) in tensors.items():
        yield name, torch.empty(shape, dtype=DTYPES[kind], device="meta")


def test_the_real_checkpoint_loads(tmp_path):
    """Nothing missing, nothing left: 47,067 names, shapes and dtypes on the meta device."""
    real = build(tmp_path)
    loaded = real.load_weights(meta(header.nvfp4_tensors()))
    assert loaded == {name for name in real.state_dict() if ".attn." not in name}


def refused(short, changes, drop=()):
    model, tensors = short
    tensors = {name: tensors[name] for name in tensors if name not in drop} | changes
    with pytest.raises(ValueError) as error:
        model.load_weights(meta(tensors))
    return str(error.value)


@pytest.mark.parametrize("leaf", ["weight", "weight_scale", "weight_scale_2", "input_scale"])
def test_a_missing_tensor_is_named(short, leaf):
    name = f"{EXPERT}.up_proj.{leaf}"
    assert f"1 tensor(s) of which each is missing from the checkpoint: {name} " in refused(
        short, {}, [name]
    )


def test_a_missing_expert_is_named(short):
    gone = [name for name in short[1] if name.startswith(f"{EXPERT}.")]
    message = refused(short, {}, gone)
    assert f"12 tensor(s) of which each is missing from the checkpoint: {EXPERT}.down" in message


WRONG = [
    ("down_proj.weight", [2816, 351], "U8", "(2816, 351) does not fit (2816, 352) uint8"),
    ("down_proj.weight", [2816, 352], "BF16", "(2816, 352) does not fit (2816, 352) uint8"),
    ("up_proj.weight", [704, 2816], "BF16", "does not fit (704, 1408) uint8"),
    ("up_proj.weight_scale", [704, 88], "F8_E4M3", "does not fit (704, 176) float8_e4m3fn"),
    ("up_proj.weight_scale", [704, 176], "U8", "does not fit (704, 176) float8_e4m3fn"),
    ("gate_proj.weight_scale_2", [2], "F32", "(2,) does not fit ()"),
]


@pytest.mark.parametrize(("leaf", "shape", "kind", "says"), WRONG)
def test_a_wrong_tensor_is_named(short, leaf, shape, kind, says):
    message = refused(short, {f"{EXPERT}.{leaf}": (shape, kind)})
    assert f"{EXPERT}.{leaf}" in message and says in message


STRAY = [
    "model.decoder.layers.7.experts.gate_up_proj",
    "model.decoder.layers.7.experts.128.up_proj.weight",
    "model.decoder.layers.7.experts.5.gate_up_proj.weight",
    "model.decoder.layers.7.self_attn.q_proj.weight_scale", "model.decoder.layers.7.experts.5.bias",
]


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_tensor_is_named(short, name):
    message = refused(short, {name: ([4], "BF16")})
    assert f"1 tensor(s) of which each has no place in this architecture: {name} (4,)." in message


def described(**changes):
    return quantisation.read(header.QUANTIZATION | changes)


def test_the_config_describes_it():
    found = described()
    assert found.nvfp4_experts and found.input_scales and str(found) == "modelopt NVFP4"
    assert described(quant_algo="W4A16_NVFP4").nvfp4_experts
    assert not described(quant_algo="W4A16_NVFP4").input_scales


def test_hf_quant_config_describes_it():
    content = {
        "producer": {"name": "modelopt", "version": "0.45"},
        "quantization": {
            "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16,
            "exclude_modules": header.QUANTIZATION["ignore"],
        },
    }
    assert quantisation.read(content) == described()


OTHERS = {
    "FP8": dict(quant_algo="FP8"),
    "dense layers too": dict(ignore=["lm_head"]),
    "experts excluded": dict(ignore=["*"]),
    "another tool": dict(quant_method="compressed-tensors", quant_algo=None),
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_other_formats_are_not_ours(changes):
    assert not described(**changes).nvfp4_experts


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_other_formats_are_refused_by_name_on_cpu(copy, changes):
    edit_json(copy / "config.json")
    content = header.QUANTIZATION | changes
    edit_json(copy / "config.json", quantization_config=content)
    with pytest.raises(ValueError, match=f"quantised by {quantisation.read(content)} need a GPU"):
        engine_config(copy)


def test_widths_without_whole_blocks_are_refused():
    from types import SimpleNamespace

    config = SimpleNamespace(num_experts=2, hidden_size=24, moe_intermediate_size=32)
    with pytest.raises(ValueError, match="multiples of 16, found 24 and 32"):
        Nvfp4Experts(config, None, Share.of(config, Ranks()), input_scales=True)
