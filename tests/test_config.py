"""Reading the sampler's settings from a generation config."""

import pytest

from diffusiongemma_vllm.config import DenoiseConfig, denoise_config

GENERATION = dict(
    confidence_threshold=0.005, max_denoising_steps=48, stability_threshold=1, t_max=0.8, t_min=0.4,
    sampler_config={"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    max_new_tokens=256, eos_token_id=[1, 106],
)


def read(generation, max_steps=None):
    return denoise_config(generation, canvas_length=256, vocab_size=1000, max_steps=max_steps)


def test_every_setting_has_its_place():
    assert read(GENERATION) == DenoiseConfig(
        canvas_length=256, vocab_size=1000, max_steps=48, t_min=0.4, t_max=0.8, entropy_bound=0.1,
        stability_steps=1, confidence=0.005,
    )


def test_the_servers_step_limit_wins():
    assert read(GENERATION, max_steps=7).max_steps == 7


def test_whole_numbers_will_do_for_fractions():
    assert read(GENERATION | {"t_max": 1}).t_max == 1.0


@pytest.mark.parametrize(
    "name", ["confidence_threshold", "max_denoising_steps", "stability_threshold", "t_max", "t_min"]
)
@pytest.mark.parametrize("value", [None, "0.5", True, [], float("inf"), float("nan")])
def test_a_missing_number_is_named_with_the_fix(name, value):
    with pytest.raises(ValueError) as error:
        read(GENERATION | {name: value})
    message = str(error.value)
    assert message.startswith(f"generation_config.json gives no number for {name!r}")
    assert f'--override-generation-config \'{{"{name}": ...}}\'' in message


@pytest.mark.parametrize("sampler", [None, {}, {"_cls_name": "Other", "entropy_bound": 1.0}, "x"])
def test_another_sampler_is_refused(sampler):
    with pytest.raises(ValueError, match="no sampler_config of class EntropyBoundSamplerConfig"):
        read(GENERATION | {"sampler_config": sampler})


@pytest.mark.parametrize("bound", [None, "0.1", True, float("nan")])
def test_an_entropy_bound_is_needed(bound):
    sampler = {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": bound}
    with pytest.raises(ValueError, match="has no number entropy_bound"):
        read(GENERATION | {"sampler_config": sampler})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"t_min": 0.9}, "0 < t_min <= t_max"),
        ({"t_min": 0.0}, "0 < t_min <= t_max"),
        ({"max_denoising_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"stability_threshold": -1}, "stability_threshold must be 0 or more, got -1"),
    ],
)
def test_a_value_out_of_range_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(GENERATION | changes)


def test_equal_temperatures_are_a_constant_schedule():
    assert read(GENERATION | {"t_min": 0.8}).t_min == 0.8
