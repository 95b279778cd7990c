"""What drafts, metrics and traces hang on in the installed vLLM: read from its source."""

import inspect
import re

import pytest

pytest.importorskip("vllm")

from vllm.plugins import load_general_plugins
from vllm.v1.engine.output_processor import OutputProcessor

load_general_plugins()


def source(of):
    return inspect.getsource(inspect.unwrap(of))


def leading(function, *names):
    return list(inspect.signature(inspect.unwrap(function)).parameters)[: len(names)] == list(names)


def test_notes_travel_where_sampling_masks_would():
    """Copied with the text, handed to the scheduler, which has no other use for them."""
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.worker.gpu.async_utils import AsyncOutput
    from vllm.v1.worker.gpu.sample.output import SamplerOutput

    fields = inspect.signature(SamplerOutput).parameters
    assert fields["sampling_mask_tensors"].default is None
    assert "sampling_masks" in inspect.signature(ModelRunnerOutput).parameters
    assert "sampler_output.sampling_mask_tensors.to_cpu_nonblocking()" in source(AsyncOutput)
    given = re.sub(r"\s", "", source(AsyncOutput.get_output))
    assert "sampling_masks=(self.sampling_mask_tensors.tolists(" in given
    used = source(Scheduler.update_from_output)
    assert used.index("if self.return_sampling_mask:") < used.index("sampling_masks")
    refused = source(VllmConfig._verify_sampling_replay_config)
    assert "if model_config.is_diffusion:\n            raise ValueError(" in refused


def test_outputs_reach_the_front_end():
    from vllm.v1.engine import async_llm, llm_engine

    assert leading(OutputProcessor.process_outputs, "self", "engine_core_outputs")
    for module in (async_llm, llm_engine):
        assert "output_processor.process_outputs(" in source(module)
        assert "output_processor.add_request(" in source(module)
    assert leading(OutputProcessor.add_request, "self", "request")
    assert "self.request_states[request_id] = req_state" in source(OutputProcessor.add_request)
    # Children of a request share its arguments by identity, and with them the listener.
    from vllm.v1.engine.parallel_sampling import ParentRequest

    assert "copy(self.sampling_params)" in source(ParentRequest._get_child_sampling_params)


def test_streams_are_made_where_listeners_are_set():
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    chat, completion = OpenAIServingChat, OpenAIServingCompletion
    assert leading(chat.create_chat_completion, "self", "request", "raw_request")
    assert leading(completion.create_completion, "self", "request", "raw_request")
    assert leading(
        chat.chat_completion_stream_generator, "self", "request", "result_generator", "request_id",
        "model_name", "conversation", "tokenizer",
    )
    assert leading(
        completion.completion_stream_generator, "self", "request", "engine_inputs",
        "result_generator", "request_id", "created_time", "model_name",
    )
    made = source(completion._create_completion)
    assert 'request_id_item = f"{request_id}-{i}"' in made and 'f"cmpl-' in made
    assert "tokenizer=tokenizer," in made


def test_a_raw_prompt_is_tokenized_by_a_thread():
    from vllm.v1.engine.input_processor import InputProcessor

    made = re.sub(r"\s", "", source(InputProcessor.__init__))
    assert "make_async(self.process_inputs,executor=self.renderer._executor)" in made


def test_the_metrics_logger():
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    assert leading(PrometheusStatLogger.__init__, "self", "vllm_config", "engine_indexes")
    assert "unregister_vllm_metrics()" in source(PrometheusStatLogger.__init__)


def test_the_tracer():
    assert leading(OutputProcessor.do_tracing, "self", "engine_core_output")
    assert "instrument_manual(" in source(OutputProcessor.do_tracing)
    assert "attributes=attributes" in source(OutputProcessor.do_tracing)
