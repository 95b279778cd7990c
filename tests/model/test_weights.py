"""Every tensor of a checkpoint has a place, every place a tensor, and a mistake is named."""

import header
import pytest
import torch
from modules import building, empty, engine_config
from safetensors.torch import load_file

from diffusiongemma_vllm.model.weights import Target, source, target

DECODER = "model.decoder.layers"
QKV = "model.layers.{}.self_attn.qkv_proj.weight"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The model in the real shape, on the meta device."""
    folder = header.write(tmp_path_factory.mktemp("real"))
    config = engine_config(folder, load_format="dummy", dtype="bfloat16")
    with building(config, "meta"):
        return empty(config)


def meta(shapes):
    for name, shape in shapes.items():
        yield name, torch.empty(shape, dtype=torch.bfloat16, device="meta")


def test_the_table_has_a_place_for_all_1047_names():
    places = {name: target(name, header.FULL) for name in header.tensors()}
    assert [name for name, place in places.items() if place is None] == []
    keys = [
        (place.parameter, place.expert, shard)
        for place in places.values() for shard in place.shards
    ]
    assert len(set(keys)) == len(keys) == header.TENSORS + len(header.FULL)  # k fills v too


def test_the_table_leads_back():
    for name in header.tensors():
        place = target(name, header.FULL)
        if place.expert is None:
            for shard in place.shards:
                assert source(place.parameter, shard, header.FULL) == name


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("0.self_attn.v_proj.weight", Target(QKV.format(0), ("v",))),
        ("5.self_attn.k_proj.weight", Target(QKV.format(5), ("k", "v"))),
        ("5.self_attn.v_proj.weight", None),
        ("3.mlp.up_proj.weight", Target("model.layers.3.mlp.gate_up_proj.weight", (1,))),
        ("3.layer_scalar", Target("model.layers.3.decoder_scalar")),
        ("3.experts.down_proj", Target("model.layers.3.experts", expert="down_proj")),
    ],
)
def test_entries_of_the_table(name, want):
    assert target(f"{DECODER}.{name}", header.FULL) == want


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.encoder.language_model.layers.0.mlp.up_proj.weight", "x"]
)
def test_names_without_a_place(name):
    assert target(name, header.FULL) is None


def own(model):
    """The model's state, without the scales that vLLM's attention keeps for a KV cache in FP8."""
    return {name: x for name, x in model.state_dict().items() if ".attn." not in name}


def test_the_real_checkpoint_loads(real):
    """Nothing missing, nothing left: 1,047 names and shapes on the meta device."""
    assert real.load_weights(meta(header.tensors())) == set(own(real))


def test_the_real_model_has_as_many_elements_as_the_checkpoint(real):
    """Beyond the checkpoint's, only the values of full layers, which are copies of their keys."""
    copies = len(header.FULL) * 2 * 512 * header.H
    elements = sum(tensor.numel() for tensor in own(real).values())
    assert elements == header.BYTES // 2 + copies


MISSING = [
    (f"{DECODER}.5.self_attn.k_proj.weight", (1024, 2816)),
    (f"{DECODER}.0.self_attn.v_proj.weight", (2048, 2816)),
    (f"{DECODER}.29.self_attn.q_proj.weight", (8192, 2816)),
    (f"{DECODER}.7.mlp.gate_proj.weight", (2112, 2816)),
    (f"{DECODER}.7.experts.gate_up_proj", (128, 1408, 2816)),
    (f"{DECODER}.7.router.per_expert_scale", (128,)),
    (f"{DECODER}.7.layer_scalar", (1,)),
    ("model.encoder.language_model.layers.7.layer_scalar", (1,)),
    ("model.decoder.embed_tokens.weight", (262144, 2816)),
    ("model.decoder.self_conditioning.up_proj.weight", (2112, 2816)),
    ("model.encoder.embed_vision.embedding_projection.weight", (2816, 1152)),
    ("model.encoder.vision_tower.std_bias", (1152,)),
]


@pytest.mark.parametrize(("name", "shape"), MISSING, ids=lambda x: x if isinstance(x, str) else "")
def test_a_missing_tensor_is_named_with_its_shape(real, name, shape):
    shapes = header.tensors()
    del shapes[name]
    with pytest.raises(ValueError) as error:
        real.load_weights(meta(shapes))
    assert f"1 tensor(s) of which each is missing from the checkpoint: {name} {shape}." in str(
        error.value
    )


STRAY = [
    "lm_head.weight",
    f"{DECODER}.30.self_attn.q_proj.weight",
    f"{DECODER}.99.experts.gate_up_proj",
    f"{DECODER}.0.experts.5.gate_proj.weight",
    f"{DECODER}.5.self_attn.v_proj.weight",
    f"{DECODER}.0.self_attn.q_proj.bias",
    f"{DECODER}.0.self_attn.qkv_proj.weight",
    f"{DECODER}.0.encoder_scalar",
    "model.encoder.language_model.layers.0.input_layernorm.weight",
    "model.encoder.vision_tower.stray",
]


@pytest.mark.parametrize("name", STRAY)
def test_a_stray_tensor_is_named_with_its_shape(real, name):
    shapes = header.tensors() | {name: [1024, 2816]}
    with pytest.raises(ValueError) as error:
        real.load_weights(meta(shapes))
    message = str(error.value)
    assert "1 tensor(s) of which each has no place in this architecture" in message
    assert f": {name} (1024, 2816)." in message and "config.json" in message


@pytest.fixture(scope="module")
def small(checkpoint):
    """A small model and its checkpoint's tensors, on the CPU."""
    config = engine_config(checkpoint)
    with building(config):
        return empty(config), load_file(checkpoint / "model.safetensors")


def test_one_wrong_shape_of_every_kind_is_named(small):
    """For every tensor: one row more, one row, and one column."""
    model, tensors = small
    for name, tensor in tensors.items():
        bad = [torch.cat([tensor, tensor[:1]])]
        if tensor.shape[0] > 1:
            bad.append(tensor[:1])
        if tensor.dim() > 1:
            bad.append(tensor[..., :1])
        for wrong in bad:
            with pytest.raises(ValueError, match="does not fit config.json") as error:
                model.load_weights((tensors | {name: wrong}).items())
            assert f"{name} {tuple(wrong.shape)} does not fit {tuple(tensor.shape)}." in str(
                error.value
            )


def test_what_is_loaded_is_what_was_stored(small):
    model, tensors = small
    model.load_weights(tensors.items())
    weight = model.model.layers[2].self_attn.qkv_proj.weight
    stored = {name: tensors[f"{DECODER}.2.self_attn.{name}_proj.weight"] for name in "qk"}
    assert torch.equal(weight, torch.cat([stored["q"], stored["k"], stored["k"]]))
    assert torch.equal(
        model.model.layers[0].mlp.gate_up_proj.weight,
        torch.cat([tensors[f"{DECODER}.0.mlp.{name}_proj.weight"] for name in ("gate", "up")]),
    )
    assert not model.model.layers[0].scalars_differ


def test_a_long_list_is_cut(small):
    model, tensors = small
    with pytest.raises(ValueError, match=r"\d+ tensor\(s\) .* and \d+ more\. Check that") as error:
        model.load_weights([("model.decoder.norm.weight", tensors["model.decoder.norm.weight"])])
    assert len(str(error.value)) < 1000
