"""What the installed vLLM reads of us and what we replace of it: read from its source."""

import asyncio
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import vllm
from fastapi import Request
from modules import engine_config
from vllm.plugins import load_general_plugins
from vllm.v1.worker.gpu.model_states.interface import ModelState

from diffusiongemma_vllm import compat
from diffusiongemma_vllm.config import denoise_config
from diffusiongemma_vllm.runner import fields
from diffusiongemma_vllm.runner import sampler as sampler_module
from diffusiongemma_vllm.runner.async_scheduler import AsyncCanvasScheduler
from diffusiongemma_vllm.runner.entry import DiffusionGemmaForBlockDiffusion
from diffusiongemma_vllm.runner.model_state import DiffusionGemmaModelState
from diffusiongemma_vllm.runner.sampler import DiffusionSampler
from diffusiongemma_vllm.runner.scheduler import CanvasScheduler
from diffusiongemma_vllm.state import SlotState

load_general_plugins()
GPU = Path(vllm.__file__).parent / "v1" / "worker" / "gpu"
# Read only where a speculator, batch-sharded sampling or an encoder is configured: refused, off,
# and without an encoder cache.
NEVER = {"sampling_states", "compute_nans", "get_logprobs_dims", "encoder_runner"}
GUARDED = {"_mamba_ctx", "_mamba_group_ids", "_mamba_spec"}  # read behind hasattr


def read(files, pattern):
    """Attributes that match ``pattern`` in vLLM's source."""
    text = "".join((GPU / name).read_text() for name in files)
    return sorted(set(re.findall(pattern, text)) - NEVER - GUARDED)


RUNNER = ["model_runner.py"]
STATE = ["model_runner.py", "cudagraph_utils.py"]


@pytest.fixture(scope="module")
def sampler(checkpoint):
    """Ours, with a slot state and no model behind it."""
    config = engine_config(checkpoint)
    rules = denoise_config(
        config.model_config.try_get_generation_config(), canvas_length=32, vocab_size=512,
        max_steps=None,
    )
    state = SlotState(
        rules, slots=2, hidden=4, limit=100, dtype=torch.float32, device=torch.device("cpu")
    )
    model = SimpleNamespace(text_config=config.model_config.hf_text_config)
    return DiffusionSampler(rules, state, model, None)


def test_the_source_is_read():
    """The patterns below find what they look for."""
    assert "add_request" in read(RUNNER, r"self\.sampler\.(\w+)")
    assert "prepare_inputs" in read(STATE, r"(?<!_)model_state\.(\w+)")
    assert "compute_logits" in read(RUNNER, r"self\.model\.(\w+)")


@pytest.mark.parametrize("name", read(RUNNER, r"self\.sampler\.(\w+)"))
def test_the_sampler_offers_what_the_runner_reads(sampler, name):
    assert hasattr(sampler, name)


def test_the_sampler_offers_what_the_runner_reads_below(sampler):
    assert sampler.penalties_state.output_bin_counts is None


@pytest.mark.parametrize("name", read(STATE, r"(?<!_)model_state\.(\w+)"))
def test_the_model_state_offers_what_the_runner_reads(name):
    assert hasattr(DiffusionGemmaModelState, name) or name == "supports_mm_inputs"
    assert "self.supports_mm_inputs = " in inspect.getsource(ModelState.__init__)


OPTIONAL = {"compute_logits_local", "make_empty_intermediate_tensors"}  # TP and PP alone


@pytest.mark.parametrize("name", sorted(set(read(RUNNER, r"self\.model\.(\w+)")) - OPTIONAL))
def test_the_model_offers_what_the_runner_reads(name):
    assert hasattr(DiffusionGemmaForBlockDiffusion, name)


def test_the_model_is_a_text_generation_model():
    from vllm.model_executor.models.interfaces_base import is_text_generation_model

    assert is_text_generation_model(DiffusionGemmaForBlockDiffusion)


@pytest.mark.parametrize(
    "name", [name for name in vars(DiffusionGemmaModelState) if not name.startswith("__")]
)
def test_the_model_state_overrides_what_vllm_calls_with_the_same_arguments(name):
    own = getattr(DiffusionGemmaModelState, name)
    base = getattr(ModelState, name)
    if callable(own):
        assert list(inspect.signature(own).parameters) == list(inspect.signature(base).parameters)


def test_no_abstract_method_is_left():
    assert not DiffusionGemmaModelState.__abstractmethods__


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, name)
        for owner in (CanvasScheduler, AsyncCanvasScheduler)
        for name in (
            "schedule", "update_draft_token_ids", "update_from_output",
            "_update_request_with_output",
        )
    ],
)
def test_the_schedulers_methods_take_what_vllms_take(owner, name):
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    own = inspect.signature(getattr(owner, name)).parameters
    base = inspect.signature(getattr(AsyncScheduler, name)).parameters
    assert list(own) == list(base)


def test_the_requests_fields_that_the_scheduler_uses_exist():
    from vllm.v1.request import Request

    source = inspect.getsource(Request)
    for name in (
        "num_computed_tokens", "num_in_flight_tokens", "num_output_placeholders",
        "num_stale_output_tokens", "next_decode_eligible_step", "is_prefill_chunk",
        "spec_token_ids", "num_tokens",
    ):
        assert re.search(rf"self\.{name}\b|def {name}\(", source), name


# What compat.py replaces.


def patched():
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.structured_output import StructuredOutputManager

    return {
        AsyncLLM.generate: ["self", "prompt", "sampling_params", "request_id"],
        AsyncLLM.sleep: ["self", "level"],
        LLMEngine.sleep: ["self", "level"],
        StructuredOutputManager.grammar_init: ["self", "request"],
        EngineArgs.create_engine_config: ["self", "usage_context", "headless"],
        SamplingParams._validate_diffusion: ["self", "model_config"],
        SamplingParams._validate_structured_outputs: [
            "self", "model_config", "structured_outputs_config", "tokenizer",
        ],
        InputProcessor.process_inputs: ["self", "request_id", "prompt", "params"],
        InputProcessor.resolve_watermarking: ["self", "params"],
        InputProcessor.__init__: ["self", "vllm_config"],
        InputProcessor._validate_lora: ["self", "lora_request"],
        WorkerLoRAManager._load_adapter: ["self", "lora_request"],
    }


@pytest.mark.parametrize(
    ("function", "leading"), patched().items(), ids=lambda x: getattr(x, "__qualname__", "")
)
def test_a_patched_function_still_has_the_signature_expected(function, leading):
    assert getattr(function, compat.MARK), "patched"
    original = function.__wrapped__
    assert not getattr(original, compat.MARK, False), "once"
    assert list(inspect.signature(original).parameters)[: len(leading)] == leading


def test_every_patch_is_listed_above():
    names = set(re.findall(r"patch\(\w+, \"(\w+)\"", inspect.getsource(compat)))
    assert names == {function.__name__ for function in patched()}


def test_a_checked_prompt_is_made_into_a_request_once():
    """With what only the engine knows of it filled in."""
    from vllm.v1.engine import async_llm
    from vllm.v1.engine.input_processor import InputProcessor

    made = []

    def process(*args, **options):
        made.append((args, options))
        return SimpleNamespace()

    prompt = {"type": "token", "prompt_token_ids": [1]}
    options = {"priority": 3, "trace_headers": {"a": "b"}}
    checked = compat.check_early(
        SimpleNamespace(process_inputs=process), prompt, None, "early", options
    )
    assert made == [(("early", prompt, None, ("generate",)), {"priority": 3})] and checked == prompt
    assert compat.check_early(None, checked, None, "x", {}) is checked
    assert compat.check_early(None, "a text", None, "x", {}) == "a text"
    request = InputProcessor.process_inputs(None, "late", checked, None, trace_headers=None)
    assert request is checked.request
    assert (request.request_id, request.trace_headers) == ("late", None)
    given = inspect.signature(inspect.unwrap(async_llm.AsyncLLM.generate)).parameters
    taken = inspect.signature(inspect.unwrap(InputProcessor.process_inputs)).parameters
    assert set(compat.PROCESSED) == set(given) & set(taken) - {
        "self", "prompt", "request_id", "trace_headers"
    }


def test_what_checks_early_still_fits():
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    original = inspect.unwrap(OpenAIServingResponses._generate_with_builtin_tools)
    leading = ["self", "request_id", "engine_input", "sampling_params", "context"]
    assert list(inspect.signature(original).parameters)[:5] == leading
    source = inspect.getsource(original)
    assert "self.engine_client.generate(\n                engine_input," in source


def test_what_looks_at_bodies_still_fits(monkeypatch):
    """Our look comes before the fields; other models' servers, and bodies, are left alone."""
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.openai.chat_completion import api_router as chats
    from vllm.entrypoints.openai.completion import api_router as completions
    from vllm.entrypoints.serve.utils.api_utils import validate_json_request
    from vllm.exceptions import VLLMValidationError

    original = inspect.unwrap(entry.build_app)
    leading = ["args", "supported_tasks", "model_config"]
    assert list(inspect.signature(original).parameters) == leading
    source = inspect.getsource(inspect.unwrap(entry.build_and_serve))
    assert "build_app(args, supported_tasks, model_config)" in source
    for router in (chats.router, completions.router):
        assert all(
            [one.call for one in route.dependant.dependencies] == [validate_json_request]
            for route in router.routes
        )

    def made(config):
        app = SimpleNamespace(dependency_overrides={})
        monkeypatch.setattr(entry, "build_app", lambda *given: app)
        fields.look_at_bodies()
        assert entry.build_app(None, None, config) is app
        return app.dependency_overrides

    assert not made(None) and not made(SimpleNamespace(architectures=["LlamaForCausalLM"]))
    look = made(SimpleNamespace(architectures=[compat.ARCHITECTURE]))[validate_json_request]

    def body(text):
        async def receive():
            return {"type": "http.request", "body": text}

        headers = [(b"content-type", b"application/json")]
        return Request({"type": "http", "headers": headers}, receive)

    for text in (b"{", b"", b"\xff", b"[]", b"{}", b'{"structured_outputs": {}}'):
        asyncio.run(look(body(text)))
    with pytest.raises(VLLMValidationError, match="must be an object with one of .*, got 'text'"):
        asyncio.run(look(body(b'{"structured_outputs": "text"}')))


def test_vllm_still_fails_on_a_constraint_that_is_no_object():
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    with pytest.raises(AttributeError):
        CompletionRequest(prompt="a", structured_outputs="text")


def test_what_carries_the_reports_still_fits():
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.v1.engine.output_processor import RequestState

    for function, leading in {
        RequestState.make_request_output: [
            "self", "new_token_ids", "pooling_output", "finish_reason", "stop_reason",
            "kv_transfer_params",
        ],
        OpenAIServingChat.chat_completion_full_generator: ["self", "request", "result_generator"],
        OpenAIServingChat.chat_completion_stream_generator: ["self", "request", "result_generator"],
        OpenAIServingCompletion.completion_stream_generator: [
            "self", "request", "engine_inputs", "result_generator",
        ],
        OpenAIServingCompletion.request_output_to_completion_response: [
            "self", "final_res_batch", "request",
        ],
    }.items():
        original = inspect.unwrap(function)
        assert list(inspect.signature(original).parameters)[: len(leading)] == leading
    assert "self._new_completion_output(" in inspect.getsource(
        inspect.unwrap(RequestState.make_request_output)
    )


def test_vllm_still_calls_what_is_patched():
    from vllm.sampling_params import SamplingParams

    source = inspect.getsource(SamplingParams)
    assert "self._validate_diffusion(" in source
    assert "self._validate_structured_outputs(" in source
    from vllm.v1.engine import async_llm, llm_engine

    for module in (async_llm, llm_engine):
        assert "input_processor.process_inputs(" in inspect.getsource(module)
    from vllm.entrypoints.generate.beam_search import offline, online

    for module in (offline, online):
        assert "input_processor.resolve_watermarking(params)" in inspect.getsource(module)


def test_vllms_config_hook_is_replaced_and_still_called():
    from vllm.config import ModelConfig, VllmConfig
    from vllm.model_executor.models import config as hooks

    hook = hooks.MODELS_CONFIG_MAP[compat.ARCHITECTURE]
    assert hook is not hooks.DiffusionGemmaModelForBlockDiffusionConfig
    for name in ("verify_and_update_model_config", "verify_and_update_config"):
        own, base = getattr(hook, name), getattr(hooks.VerifyAndUpdateConfig, name)
        assert len(inspect.signature(own).parameters) == len(inspect.signature(base).parameters)
    assert "MODELS_CONFIG_MAP" in inspect.getsource(VllmConfig.try_verify_and_update_config)
    assert "MODELS_CONFIG_MAP" in inspect.getsource(ModelConfig._try_verify_and_update_model_config)


def test_the_switch_of_the_rust_front_end_exists(monkeypatch):
    from vllm import envs

    envs.disable_envs_cache()  # an engine in this process has turned it on
    assert not compat.rust_frontend()
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    assert envs.VLLM_USE_RUST_FRONTEND and compat.rust_frontend()


def test_noise_is_made_for_a_kernel(sampler, monkeypatch):
    """On a GPU its arguments must be contiguous, for one request as for two."""
    seen = []

    def tokens(seed, counter, vocab):
        seen.append(seed.is_contiguous() and counter.is_contiguous())
        return torch.zeros_like(counter)

    monkeypatch.setattr(sampler_module, "hash_uniform_tokens", tokens)
    for count in (1, 2):
        zero = torch.zeros(count, dtype=torch.int64)
        assert sampler._noise(torch.arange(count), zero, zero).shape == (count, 32)
    assert seen == [True, True]


def test_a_released_slot_forgets_its_filters(sampler):
    from vllm import SamplingParams

    sampler.add_request(0, SamplingParams(top_k=3, seed=1))
    assert 0 in sampler.special
    sampler.add_request(0, SamplingParams(seed=1))
    assert 0 not in sampler.special
