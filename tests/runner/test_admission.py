"""Which requests are let in, and what a refused one is told."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from vllm import SamplingParams
from vllm.config import StructuredOutputsConfig
from vllm.exceptions import VLLMValidationError
from vllm.plugins import load_general_plugins
from vllm.sampling_params import (
    BeamSearchParams,
    RepetitionDetectionParams,
    StructuredOutputsParams,
)
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.llm_engine import LLMEngine

from diffusiongemma_vllm.compat import ARCHITECTURE
from diffusiongemma_vllm.runner import numbers
from diffusiongemma_vllm.runner.admission import check, check_tokens

load_general_plugins()
OURS = SimpleNamespace(architectures=[ARCHITECTURE], is_diffusion=True)
OTHER_DIFFUSION = SimpleNamespace(architectures=["OtherDiffusion"], is_diffusion=True)
ORDINARY = SimpleNamespace(architectures=["LlamaForCausalLM"], is_diffusion=False)

REFUSED = {
    "prompt_logprobs": 1,
    "prompt_logprob_token_ids": [4],
    "trace_decode_token_ids": [1, 2],
    "watermarking": True,
}
SERVED = {
    "temperature": [0.0, 0.5, 1.0, 2.0], "top_k": [-1, 0, 1, 40], "top_p": [0.1, 1.0],
    "seed": [0, 7, 2**62], "n": [2], "max_tokens": [1, 1000, None], "stop": ["x", ["x", "y"]],
    "stop_token_ids": [[1, 2]], "ignore_eos": [True], "include_stop_str_in_output": [True],
    "skip_special_tokens": [False], "spaces_between_special_tokens": [False],
    "min_p": [0.0, 0.1], "min_tokens": [3], "logit_bias": [{5: 1.0}], "bad_words": [["x"]],
    "allowed_token_ids": [[1, 2]], "presence_penalty": [0.5, -2.0], "frequency_penalty": [-0.5],
    "repetition_penalty": [1.1], "logprobs": [0, 5, -1], "logprob_token_ids": [[4]],
    "thinking_token_budget": [0, 10],
    "structured_outputs": [StructuredOutputsParams(regex="a+")],
    "detokenize": [False], "skip_reading_prefix_cache": [True], "extra_args": [{"mine": 1}],
}
# Of no effect on which tokens come out, or only together with an option that is refused.
ELSEWHERE = {
    "output_kind", "stream_interval", "skip_clone", "output_text_buffer_length", "flat_logprobs",
    "prompt_logprob_start", "routed_experts_prompt_start", "repetition_detection",
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_that_cannot_be_honoured_is_refused(option):
    with pytest.raises(VLLMValidationError) as error:
        check(SamplingParams(**{option: REFUSED[option]}))
    message = str(error.value)
    assert f"does not support {option}" in message
    assert "Drop what is not supported from the request." in message
    assert error.value.parameter.startswith(option)


@pytest.mark.parametrize("owner", [AsyncLLM, LLMEngine])
def test_a_sleep_that_drops_the_weights_is_refused(owner):
    with pytest.raises(VLLMValidationError, match="level 2.* Use level 0 or 1") as error:
        owner.sleep(SimpleNamespace(model_config=OURS), 2)
    assert error.value.parameter == "level"


@pytest.mark.parametrize(("model", "level"), [(OURS, 0), (OURS, 1), (ORDINARY, 2)])
def test_another_sleep_is_vllms(model, level):
    engine = Mock(model_config=model)
    LLMEngine.sleep(engine, level)
    engine.engine_core.sleep.assert_called_once_with(level, "abort")


def test_every_option_is_named():
    with pytest.raises(VLLMValidationError, match="prompt_logprobs, watermarking.*: the model"):
        check(SamplingParams(prompt_logprobs=2, watermarking=True))


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in SERVED.items() for value in values]
)
def test_an_option_that_is_honoured_is_let_in(option, value):
    check(SamplingParams(**{option: value}))


@pytest.mark.parametrize(("options", "says"), [
    ({"thinking_token_budget": 2**63}, "thinking_token_budget must hold whole numbers below 2.63"),
    ({"logit_bias": {2**63: 1.0}}, "logit_bias must hold whole numbers"),
    ({"repetition_penalty": 1e300}, "repetition_penalty must be a number of 1e-06..1e.06, got"),
    ({"repetition_detection": RepetitionDetectionParams(2, 0, 10**400)}, "of more than 300 digits"),
    ({"logit_bias": {5: float("nan")}}, "logit_bias must hold numbers of at most 1e.30, got nan"),
    ({"logit_bias": {5: float("inf")}}, "logit_bias must hold numbers"),
])
def test_a_number_that_cannot_be_kept_is_refused(options, says):
    with pytest.raises(VLLMValidationError, match=says) as error:
        numbers.check(SamplingParams(**options))
    assert error.value.parameter == next(iter(options))


def test_numbers_at_the_edge_are_kept():
    numbers.check(SamplingParams(
        thinking_token_budget=2**63 - 1, repetition_penalty=1e-6, seed=-(2**63),
        logit_bias={5: -1e9, 6: float("-inf")}, extra_args={"mine": [True, "x", None, 1.5]},
    ))


@pytest.mark.parametrize("options", [
    dict(logprob_token_ids=[5], allowed_token_ids=[6]),
    dict(logprob_token_ids=[2], min_tokens=1, stop_token_ids=[2]),
])
def test_a_constrained_request_must_have_a_token_left(options):
    check_tokens(SamplingParams(**options))
    with pytest.raises(VLLMValidationError, match="logprob_token_ids with diffusion_constrained"):
        check_tokens(SamplingParams(**options, extra_args={"diffusion_constrained": True}))


def test_tokens_must_be_left_to_write():
    params = SamplingParams(allowed_token_ids=[1, 2], min_tokens=1, stop_token_ids=[1])
    check_tokens(params)
    params._bad_words_token_ids = [[7, 2]]
    with pytest.raises(VLLMValidationError, match="leaves no token to write"):
        check_tokens(params)
    check_tokens(SamplingParams())


@pytest.mark.parametrize(
    "option", [name for name in SamplingParams.__struct_fields__ if not name.startswith("_")]
)
def test_every_option_of_this_vllm_is_accounted_for(option):
    """A new option must be served or refused, not ignored."""
    assert option in REFUSED or option in SERVED or option in ELSEWHERE


def test_vllms_own_refusal_is_replaced_for_ours():
    SamplingParams(temperature=0.3, seed=5)._validate_diffusion(OURS)
    with pytest.raises(VLLMValidationError, match="does not support prompt_logprobs"):
        SamplingParams(prompt_logprobs=2)._validate_diffusion(OURS)
    for options, says in (({"ignore_eos": True}, "do not go with ignore_eos"), ({}, "tokenizer")):
        constrained = SamplingParams(
            structured_outputs=StructuredOutputsParams(regex="a"), **options
        )
        with pytest.raises(VLLMValidationError, match=says):
            constrained._validate_structured_outputs(OURS, StructuredOutputsConfig(), None)
    SamplingParams()._validate_structured_outputs(OURS, StructuredOutputsConfig(), None)


@pytest.mark.parametrize("wrong", ["text", "", {"regex": "a"}, 5])
def test_a_constraint_is_vllms_object(wrong):
    """vLLM's ``SamplingParams`` takes anything."""
    with pytest.raises(VLLMValidationError, match="must be a StructuredOutputsParams with one of"):
        SamplingParams(structured_outputs=wrong)._validate_structured_outputs(
            OURS, StructuredOutputsConfig(), None
        )


def test_other_models_get_vllms_own_checks():
    """The patch hands over at once: same calls, same words."""
    params = SamplingParams(temperature=0.3, min_p=0.2)
    params._validate_diffusion(ORDINARY)
    original = SamplingParams._validate_diffusion.__wrapped__
    messages = []
    for validate in (SamplingParams._validate_diffusion, original):
        with pytest.raises(VLLMValidationError) as error:
            validate(params, OTHER_DIFFUSION)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and "DiffusionGemma" not in messages[0]


@pytest.mark.parametrize("name", ["_validate_diffusion", "_validate_structured_outputs"])
def test_the_patch_calls_through_with_the_same_arguments(name):
    """Seen from inside: the wrapped function gets exactly what the caller gave."""
    patched = getattr(SamplingParams, name)
    calls = []

    def original(*args, **kwargs):
        calls.append((args, kwargs))

    index = next(
        i for i, cell in enumerate(patched.__closure__) if cell.cell_contents is patched.__wrapped__
    )
    cell = patched.__closure__[index]
    kept = cell.cell_contents
    cell.cell_contents = original
    try:
        params = SamplingParams()
        patched(params, ORDINARY, "a", key="b")
    finally:
        cell.cell_contents = kept
    assert calls == [((params, ORDINARY, "a"), {"key": "b"})]


@pytest.mark.parametrize(
    ("model", "seed", "temperature", "drawn"),
    [
        (OURS, None, 1.0, True), (OURS, 5, 1.0, False), (OURS, None, 0.0, True),
        (ORDINARY, None, 1.0, False), (OTHER_DIFFUSION, None, 1.0, False),
    ],
)
def test_only_ours_draw_a_seed(monkeypatch, model, seed, temperature, drawn):
    from vllm.v1.engine.input_processor import InputProcessor

    patched = InputProcessor.process_inputs
    cell = next(c for c in patched.__closure__ if c.cell_contents is patched.__wrapped__)
    kept = cell.cell_contents
    params = SamplingParams(seed=seed, temperature=temperature)
    request = SimpleNamespace(sampling_params=params, resumable=False, mm_features=[])
    cell.cell_contents = lambda self, *a, **k: request
    try:
        request = patched(SimpleNamespace(model_config=model), "id", {})
    finally:
        cell.cell_contents = kept
    assert (request.sampling_params.seed != seed) == drawn
    if temperature == 0.0:
        assert request.sampling_params.seed == 0


@pytest.mark.parametrize(
    ("name", "given", "answer", "says"),
    [("process_inputs", ("id", {}), SimpleNamespace(sampling_params=None, resumable=True),
      "streaming input"),
     ("resolve_watermarking", (BeamSearchParams(beam_width=2, max_tokens=3),), None,
      "beam search")],
)
def test_streaming_input_and_beams_are_refused_for_ours_alone(name, given, answer, says):
    from vllm.v1.engine.input_processor import InputProcessor

    patched = getattr(InputProcessor, name)
    cell = next(c for c in patched.__closure__ if c.cell_contents is patched.__wrapped__)
    kept = cell.cell_contents
    cell.cell_contents = lambda self, *a, **k: answer
    try:
        assert patched(SimpleNamespace(model_config=ORDINARY), *given) is answer
        with pytest.raises(VLLMValidationError, match=says):
            patched(SimpleNamespace(model_config=OURS), *given)
    finally:
        cell.cell_contents = kept
