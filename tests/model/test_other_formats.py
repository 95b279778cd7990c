"""Checkpoints in formats that vLLM's own layers hold: shapes of their parts, what is missing."""

import pytest
import torch
from modules import building, engine_config
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
)
from vllm.model_executor.layers.quantization import get_quantization_config

from diffusiongemma_vllm.model.loading import _lacking, _load_one, _Mismatch, _whole
from diffusiongemma_vllm.model.weights import Target

WIDTH, HEAD = 256, 64
QKV = {"q": 8 * HEAD, "k": 4 * HEAD, "v": 4 * HEAD}
GATE_UP = {0: 512, 1: 512}


def compressed(weights, inputs=None):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    layout = "float-quantized" if weights["type"] == "float" else "pack-quantized"
    return {"quant_method": "compressed-tensors", "format": layout, "ignore": [],
            "config_groups": {"g": group}}


def numbers(kind, bits, strategy, dynamic=False, **more):
    return {"type": kind, "num_bits": bits, "strategy": strategy, "symmetric": True,
            "dynamic": dynamic} | more


FORMATS = {
    "none": None,
    "int4": compressed(numbers("int", 4, "group", group_size=32)),
    "fp8 static": compressed(numbers("float", 8, "tensor"), numbers("float", 8, "tensor")),
    "fp8 dynamic": compressed(
        numbers("float", 8, "channel"), numbers("float", 8, "token", dynamic=True)),
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True,
             "lm_head": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True,
            "lm_head": False},
}


@pytest.fixture(scope="module")
def built(checkpoint):
    config = engine_config(checkpoint)
    with building(config):
        yield


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sizes", [QKV, GATE_UP], ids=["qkv", "gate and up"])
def test_a_part_of_a_stacked_projection_has_the_shape_of_one_alone(built, name, sizes):
    content = FORMATS[name]
    quant = content and get_quantization_config(content["quant_method"]).from_config(content)
    options = {"bias": False, "quant_config": quant}
    stacked = (
        QKVParallelLinear(WIDTH, HEAD, 8, 4, **options, prefix="a.qkv_proj") if sizes is QKV else
        MergedColumnParallelLinear(WIDTH, [*GATE_UP.values()], **options, prefix="a.gate_up_proj")
    )
    places = stacked.state_dict(keep_vars=True)
    shapes = {leaf: dict(_whole(stacked, leaf, place)) for leaf, place in places.items()}
    for shard, rows in sizes.items():
        alone = ReplicatedLinear(WIDTH, rows, **options, prefix="a.o_proj")
        want = {leaf: place for leaf, place in alone.state_dict().items()}
        assert {leaf: shapes[leaf][shard] for leaf in shapes} == {
            leaf: tuple(place.shape) for leaf, place in want.items()
        }
        for leaf, tensor in want.items():
            goal, shape = Target(leaf, (shard,)), shapes[leaf][shard]
            assert _load_one(places[leaf], goal, torch.zeros_like(tensor), shape)
            with pytest.raises(_Mismatch):
                _load_one(places[leaf], goal, torch.zeros(3, *tensor.shape[1:]), shape)


def test_an_expert_that_lacks_what_others_have_is_named():
    whole = {f"{i}.{projection}_proj.{leaf}" for i in range(4)
             for projection in ("gate", "up", "down") for leaf in ("weight_packed", "weight_scale")}
    assert not [*_lacking(whole | {"gate_up_proj"}, 4)]
    gone = {"2.down_proj.weight_scale", "3.up_proj.weight_packed"}
    assert {*_lacking(whole - gone, 4)} == gone
    assert {*_lacking({n for n in whole if not n.startswith("1.")}, 4)} == {
        n for n in whole if n.startswith("1.")
    }
