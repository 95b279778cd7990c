"""NVFP4 experts compute with the numbers that their tensors stand for."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from modules import building, edit_json, edit_tensors, empty, engine_config, load
from safetensors.torch import load_file
from torch.testing import assert_close

from diffusiongemma_kernels.formats.nvfp4 import dequantize, quantize
from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_vllm.model.experts import (
    DenseExperts,
    Fp4Experts,
    Nvfp4Experts,
    PackedExperts,
)
from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.model.share import Share
from diffusiongemma_vllm.nvfp4 import NAME

CONFIG = SimpleNamespace(
    num_experts=8, hidden_size=64, moe_intermediate_size=32, top_k_experts=2
)
ALL = Share.of(CONFIG, Ranks())
EXPERTS = "model.decoder.layers.1.experts"
LAYERS = 3


@pytest.fixture(scope="module")
def small(checkpoint, tmp_path_factory):
    """A small checkpoint in NVIDIA's layout, without input scales."""
    from diffusiongemma_vllm.cli.main import main

    folder = tmp_path_factory.mktemp("nvfp4") / "small"
    assert main(["quantize", str(checkpoint), str(folder), "--calibration", "none"]) == 0
    return folder


@pytest.fixture(scope="module")
def rounded(checkpoint, tmp_path_factory):
    """The BF16 layout, holding the numbers that NVFP4 rounds it to."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("rounded") / "small")

    def edit(tensors):
        for layer in range(LAYERS):
            for leaf in ("gate_up_proj", "down_proj"):
                place = tensors[f"model.decoder.layers.{layer}.experts.{leaf}"]
                place.copy_(dequantize(quantize(place)))

    edit_tensors(folder, edit)
    return folder


def test_equal_to_the_rounded_checkpoint(small, rounded, rows):
    """Bit for bit, layer by layer."""
    mine, other = load(small), load(rounded)
    for got, want in zip(mine.model.layers, other.model.layers, strict=True):
        scores = want.router(rows)
        assert torch.equal(got.experts(rows, scores), want.experts(rows, scores))


@pytest.mark.parametrize("count", [0, 1, 33])
def test_a_row_does_not_depend_on_the_others(small, rows, count):
    experts = load(small).model.layers[0].experts
    scores = torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(1))
    whole = experts(rows, scores)
    assert_close(experts(rows[:count], scores[:count]), whole[:count], rtol=0, atol=0)


def test_tensors_are_let_go_of(small):
    experts = load(small).model.layers[0].experts
    assert {name for name, _ in experts.named_parameters()} == {
        "run.gate_up_proj", "run.down_proj",
    }


def test_the_kernels_get_the_same_numbers(small, rounded, rows):
    """Packed and dense, by the kernels' own implementation in plain torch."""
    want = load(rounded).model.layers[1].experts
    router, scores = want.routing.router, torch.randn(len(rows), 8)
    tensors = load_file(small / "model.safetensors")
    held = Nvfp4Experts(CONFIG, router, ALL, input_scales=False)
    for name, place in held.places().items():
        place.fill(tensors[f"{EXPERTS}.{name}"])
    packed = PackedExperts(held.routing, held.gate_up(), held.down())
    dense = DenseExperts(CONFIG, router, ALL)
    for name, place in dense.places().items():
        place.fill(getattr(want, name))
    for experts in (packed, dense):
        assert_close(experts(rows, scores), want(rows, scores), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel in the interpreter")
def test_rounded_activations_stay_close(small, rounded, rows):
    """What a Blackwell runs: both products' activations in NVFP4, about 0.1 off each."""
    want = load(rounded).model.layers[1].experts
    scores = torch.randn(len(rows), 8)
    tensors = load_file(small / "model.safetensors")
    held = Nvfp4Experts(CONFIG, want.routing.router, ALL, input_scales=True)
    for name, place in held.places().items():
        if name.endswith("input_scale"):
            place.tensor.fill_((60.0 if "down" in name else 6.0) / 2688)
        else:
            place.fill(tensors[f"{EXPERTS}.{name}"])
    held.check("experts")
    experts = Fp4Experts(held.routing, *held.with_input_scales())
    got, exact = summed(experts(rows, scores)), want(rows, scores)
    assert 0.01 < float((got - exact).norm() / exact.norm()) < 0.2


def test_a_dummys_scales_are_corrected(checkpoint):
    """Random floats, as ``--load-format dummy`` draws them."""
    config = SimpleNamespace(**vars(CONFIG))
    router = SimpleNamespace(per_expert_scale=torch.ones(8))
    experts = Nvfp4Experts(config, router, ALL, input_scales=True)
    for parameter in experts.parameters():
        drawn = torch.randint(0, 255, parameter.shape) if parameter.dtype == torch.uint8 else (
            torch.randn(parameter.shape) * 1e-3
        )
        parameter.data.copy_(drawn)
    experts.prepare()
    assert torch.isfinite(experts(torch.randn(3, 64), torch.randn(3, 8))).all()


def set_to(name, value):
    return lambda tensors: tensors[f"{EXPERTS}.5.{name}"].view(-1)[:1].fill_(value)


BAD = {
    "unequal gate and up": (
        set_to("up_proj.weight_scale_2", 0.5), "gate_proj and up_proj must have one weight_scale_2"
    ),
    "a scale below zero": (
        set_to("gate_proj.weight_scale", -1.0), "gate_up_weight_scale must not be negative or NaN"
    ),
    "a scale of NaN": (
        set_to("down_proj.weight_scale", float("nan")),
        "down_weight_scale must not be negative or NaN",
    ),
    "a global scale of zero": (
        set_to("down_proj.weight_scale_2", 0.0), "down_weight_scale_2 must be a positive number"
    ),
    "an infinite global scale": (
        set_to("down_proj.weight_scale_2", float("inf")),
        "down_weight_scale_2 must be a positive number",
    ),
}


@pytest.mark.parametrize(("damage", "says"), BAD.values(), ids=BAD)
def test_scales_that_cannot_be_are_named(small, damage, says):
    tensors = load_file(small / "model.safetensors")
    damage(tensors)
    config = engine_config(small)
    with building(config):
        model = empty(config)
        with pytest.raises(ValueError) as error:
            model.load_weights(tensors.items())
    message = str(error.value)
    assert f"{EXPERTS}.5: {says}" in message and "Quantise the checkpoint again" in message


@pytest.mark.parametrize("asked", [None, "modelopt", "modelopt_fp4"])
def test_what_the_user_calls_it_does_not_matter(small, asked):
    assert engine_config(small, quantization=asked).model_config.quantization == NAME


def test_hf_quant_config_alone_is_enough(small, tmp_path):
    """As ModelOpt wrote checkpoints before it put the same into config.json."""
    folder = shutil.copytree(small, tmp_path / "copy")
    edit_json(folder / "config.json", quantization_config=None)
    edit_json(folder / "hf_quant_config.json", quantization__quant_algo="NVFP4")
    config = engine_config(folder)
    assert config.model_config.quantization == NAME
    assert config.quant_config.description.nvfp4_experts
