"""The schema of ``diffusion_*`` arguments.  A server with canvases of 4 and 10 tokens."""

import pytest

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.knobs import KEYS, canvas_options

SERVER = DenoiseConfig(
    canvas_length=4, vocab_size=10, max_steps=48, t_min=0.4, t_max=0.8, entropy_bound=0.1,
    stability_steps=1, confidence=0.005,
)


def test_nothing_asked():
    assert canvas_options(None, SERVER).rules is SERVER
    assert canvas_options({"somebody_elses": 3}, SERVER).rules is SERVER


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("max_denoising_steps", 8, "max_steps"), ("t_min", 0.1, "t_min"), ("t_max", 2, "t_max"),
        ("entropy_bound", 0.5, "entropy_bound"), ("stability_threshold", 0, "stability_steps"),
        ("confidence_threshold", 0.1, "confidence"), ("canvas_length", 2, "canvas_length"),
        ("max_steps", 3, "step_limit"),
    ],
)
def test_a_rule_of_its_own(key, value, field):
    rules = canvas_options({f"diffusion_{key}": value}, SERVER).rules
    assert getattr(rules, field) == value


def test_drafts():
    assert canvas_options({"diffusion_drafts": 3}, SERVER).drafts == 3
    assert canvas_options({}, SERVER).drafts == 0


def test_fewer_steps_with_and_without_their_temperatures():
    assert canvas_options({"diffusion_max_steps": 3}, SERVER).rules.last_step == 3
    assert canvas_options({"diffusion_max_steps": 3}, SERVER).rules.max_steps == 48
    assert canvas_options({"diffusion_max_denoising_steps": 3}, SERVER).rules.last_step == 3
    assert canvas_options({"diffusion_max_denoising_steps": 3}, SERVER).rules.max_steps == 3


def test_a_template_from_a_seed_canvas_and_its_pins():
    asked = canvas_options(
        {"diffusion_seed_canvas": [5, 6, 7, 8], "diffusion_pinned": [0, 2]}, SERVER
    )
    assert asked.seed_canvas == (5, 6, 7, 8) and asked.template == (5, -1, 7, -1)
    asked = canvas_options({"diffusion_template": [-1, 3, 9, -1, -1, 2]}, SERVER)
    assert asked.template == (-1, 3, 9, -1, -1, 2), "longer than a canvas"


REFUSED = [
    ({"steps": 3}, "unknown diffusion_steps: the keys are diffusion_canvas_length, "),
    ({"max_steps": 0}, "diffusion_max_steps must be a whole number of 1..1024, got 0"),
    ({"max_steps": True}, "whole number"), ({"max_steps": 2.0}, "whole number"),
    ({"max_steps": "3"}, "whole number"), ({"max_denoising_steps": 10**9}, "1..1024"),
    ({"t_min": 0}, "diffusion_t_min must be a number of 0.001..100, got 0"),
    ({"t_min": float("nan")}, "number"), ({"t_max": float("inf")}, "number"),
    ({"t_min": "0.1"}, "number"), ({"t_min": 0.9}, "not be above diffusion_t_max, got 0.9 and 0.8"),
    ({"entropy_bound": -1}, "entropy_bound"), ({"stability_threshold": -1}, "0..1024"),
    ({"canvas_length": 5}, "diffusion_canvas_length must be 1..4, the served canvas, got 5"),
    ({"seed_canvas": [1, 2]}, "must hold 4 tokens, got 2"),
    ({"seed_canvas": [1, 2, 3, 10]}, "tokens of 0..9"),
    ({"seed_canvas": "abcd"}, "list"), ({"seed_canvas": [1, 2, 3, 4.5]}, "list"),
    ({"pinned": [1]}, "must come with a diffusion_seed_canvas"),
    ({"pinned": [4], "seed_canvas": [1, 2, 3, 4]}, "places of the canvas, 0..3"),
    ({"template": [-2]}, "tokens of -1..9"),
    ({"template": [1], "pinned": [1], "seed_canvas": [1, 2, 3, 4]}, "not both"),
    ({"rerolls": 17}, "diffusion_rerolls must be a whole number of 0..16, got 17"),
    ({"drafts": 0}, "diffusion_drafts must be a whole number of 1..1024, got 0"),
    ({"read_only": 2}, "true or false"), ({"read_only": "yes"}, "true or false"),
]


@pytest.mark.parametrize(("asked", "says"), REFUSED, ids=lambda x: str(x)[:40])
def test_refused(asked, says):
    with pytest.raises(ValueError) as error:
        canvas_options({f"diffusion_{key}": value for key, value in asked.items()}, SERVER)
    assert says in str(error.value)


def test_every_key_is_tried_above():
    tried = {f"diffusion_{key}" for asked, _ in REFUSED for key in asked}
    assert set(KEYS) <= tried | {"diffusion_confidence_threshold", "diffusion_constrained"}
