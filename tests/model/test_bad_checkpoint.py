"""What a checkpoint that cannot be served says at start-up: the file's name, and what to do."""

import os

import pytest
from modules import edit_json, edit_tensors, engine_config, load

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"


def set_in(file, **changes):
    return lambda folder: edit_json(folder / file, **changes)


CASES = {
    "heads do not fit": (CONFIG, set_in(CONFIG, text_config__num_attention_heads=3)),
    "no layer types": (CONFIG, set_in(CONFIG, text_config__layer_types=None)),
    "no experts": (CONFIG, set_in(CONFIG, text_config__num_experts=None)),
    "no rope": (CONFIG, set_in(CONFIG, text_config__rope_parameters=None)),
    "another activation": (CONFIG, set_in(CONFIG, text_config__hidden_activation="silu")),
    "an untied head": (CONFIG, set_in(CONFIG, tie_word_embeddings=False)),
    "no text config": (CONFIG, set_in(CONFIG, text_config=None)),
    "canvas of 0": (CONFIG, set_in(CONFIG, canvas_length=0)),
    "no canvas": (CONFIG, set_in(CONFIG, canvas_length=None)),
    "no sampler": (GENERATION, set_in(GENERATION, sampler_config=None)),
    "another sampler": (GENERATION, set_in(GENERATION, sampler_config={"_cls_name": "Foo"})),
    "no temperature": (GENERATION, set_in(GENERATION, t_min=None)),
    "no generation config": (GENERATION, lambda folder: (folder / GENERATION).unlink()),
    "broken generation config": (GENERATION, lambda f: (f / GENERATION).write_text("{")),
    "truncated weights": (WEIGHTS, lambda folder: os.truncate(folder / WEIGHTS, 100_000)),
    "truncated header": (WEIGHTS, lambda folder: os.truncate(folder / WEIGHTS, 100)),
    "empty weights": (WEIGHTS, lambda folder: os.truncate(folder / WEIGHTS, 0)),
    "layers do not fit": (CONFIG, set_in(CONFIG, text_config__num_hidden_layers=7)),
    "heads as text": (CONFIG, set_in(CONFIG, text_config__num_attention_heads="4")),
    "window of 0": (CONFIG, set_in(CONFIG, text_config__sliding_window=0)),
    "no entropy bound": (
        GENERATION, set_in(GENERATION, sampler_config={"_cls_name": "EntropyBoundSamplerConfig"}),
    ),
    "temperatures swapped": (GENERATION, set_in(GENERATION, t_min=0.9)),
    "no steps": (GENERATION, set_in(GENERATION, max_denoising_steps=0)),
}


@pytest.mark.parametrize(
    ("file", "damage"),
    [pytest.param(*case, id=name) for name, case in CASES.items()],
)
def test_it_is_refused_before_anything_is_loaded(copy, file, damage):
    damage(copy)
    with pytest.raises(ValueError) as error:
        engine_config(copy)
    message = str(error.value)
    assert file in message
    assert any(fix in message for fix in ("take the file from", "download the file again"))


def test_a_config_that_is_not_json_is_named(copy):
    """Nothing says yet that it is ours: vLLM's own words."""
    (copy / CONFIG).write_text("{")
    with pytest.raises(OSError, match="config.json' is not a valid JSON file"):
        engine_config(copy)


FIX = "Check that config.json and the safetensors files come from one DiffusionGemma checkpoint"


def test_missing_tensors_are_named(copy):
    edit_tensors(copy, lambda tensors: tensors.pop("model.decoder.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=FIX) as error:
        load(copy)
    assert "missing from the checkpoint: model.decoder.layers.1.mlp.up_proj.weight (96, 64)" in str(
        error.value
    )


def test_a_config_of_another_size_is_named(copy):
    edit_json(copy / CONFIG, text_config__num_attention_heads=8)
    with pytest.raises(ValueError, match=FIX) as error:
        load(copy)
    assert "q_proj.weight (128, 64) does not fit (256, 64)" in str(error.value)


def test_weights_of_another_vocabulary_are_named(copy):
    edit_json(copy / CONFIG, text_config__vocab_size=1000)
    with pytest.raises(ValueError, match=FIX) as error:
        load(copy)
    assert "embed_tokens.weight (512, 64) does not fit (1000, 64)" in str(error.value)
