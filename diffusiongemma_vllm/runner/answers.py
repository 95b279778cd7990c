"""The report on an answer, from the scheduler to who asked.

Offline it is ``CompletionOutput.diffusion``.  Over HTTP it is the field ``diffusion`` of every
choice of a chat or text completion; streamed, of the chunk with the choice's ``finish_reason``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

from diffusiongemma_vllm.compat import ours, patch
from diffusiongemma_vllm.runner import draft_stream, early, fields, listening, meters, traces
from diffusiongemma_vllm.runner.report import KEY

_REPORT: ContextVar[dict[str, Any] | None] = ContextVar("report", default=None)

Reports = dict[int, dict[str, Any]]  # by a choice's index


def install() -> None:
    """In a process that takes requests; its HTTP handlers too, where it has any."""
    mark_outputs()
    listening.hear()
    meters.install()
    traces.install()
    if "vllm.entrypoints.launchers.api_server.entry" in sys.modules:
        answer_chats()
        answer_completions()
        early.refuse_beam_streams()
        early.check_responses()
        draft_stream.install()
        fields.install()


def mark_outputs() -> None:
    """``CompletionOutput.diffusion``; the scheduler sends it in ``kv_transfer_params``.

    Removal: when ``EngineCoreOutput`` and ``CompletionOutput`` have room for what a model tells.
    """
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.output_processor import RequestState

    def make_request(original: Any) -> Any:
        def make_request_output(
            self: Any, new_token_ids: Any, pooling_output: Any, finish_reason: Any,
            stop_reason: Any, kv_transfer_params: Any = None, *args: Any, **kwargs: Any,
        ) -> Any:
            report, rest = None, kv_transfer_params
            if kv_transfer_params is not None and KEY in kv_transfer_params:
                rest = {key: value for key, value in kv_transfer_params.items() if key != KEY}
                report, rest = kv_transfer_params[KEY], rest or None
            token = _REPORT.set(report)
            try:
                return original(
                    self, new_token_ids, pooling_output, finish_reason, stop_reason, rest, *args,
                    **kwargs,
                )
            finally:
                _REPORT.reset(token)

        return make_request_output

    def make_completion(original: Any) -> Any:
        def _new_completion_output(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(self, *args, **kwargs)
            if (report := _REPORT.get()) is not None:
                output.diffusion = report
            return output

        return _new_completion_output

    def make_add(original: Any) -> Any:
        def add(self: Any, next_output: Any, aggregate: bool) -> None:
            original(self, next_output, aggregate)
            for newer in next_output.outputs:
                for output in self.outputs:
                    if output.index == newer.index and hasattr(newer, KEY):
                        output.diffusion = newer.diffusion

        return add

    patch(RequestOutput, "add", make_add)
    patch(RequestState, "make_request_output", make_request)
    patch(RequestState, "_new_completion_output", make_completion)


def answer_chats() -> None:
    """Reports in the choices of chat completions, streamed or not.

    Removal: when a response's choices carry what a model tells in its ``CompletionOutput``.
    """
    from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    def make_full(original: Any) -> Any:
        async def full_generator(
            self: Any, request: Any, results: Any, *args: Any, **kwargs: Any
        ) -> Any:
            """results: of one chat, or a list with those of each chat of a batch."""
            if not ours(self.model_config):
                return await original(self, request, results, *args, **kwargs)
            reports: Reports = {}
            if isinstance(results, list):
                noted: Any = [_noting(some, reports, first=i) for i, some in enumerate(results)]
            else:
                noted = _noting(results, reports)
            return _tell(await original(self, request, noted, *args, **kwargs), reports)

        return full_generator

    patch(OpenAIServingChatBatch, "chat_completion_full_generator_batch", make_full)
    patch(OpenAIServingChat, "chat_completion_full_generator", make_full)
    patch(OpenAIServingChat, "chat_completion_stream_generator", _make_stream)


def answer_completions() -> None:
    """The same for text completions.  Removal: as ``answer_chats``."""
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    def make_full(original: Any) -> Any:
        def request_output_to_completion_response(
            self: Any, final_res_batch: Any, request: Any, *args: Any, **kwargs: Any
        ) -> Any:
            response = original(self, final_res_batch, request, *args, **kwargs)
            if ours(self.model_config):
                found = [output for result in final_res_batch for output in result.outputs]
                _tell(response, {i: output.diffusion for i, output in enumerate(found)
                                 if hasattr(output, KEY)})
            return response

        return request_output_to_completion_response

    def make_stream(original: Any) -> Any:
        def completion_stream_generator(
            self: Any, request: Any, engine_inputs: Any, result_generator: Any, *args: Any,
            **kwargs: Any,
        ) -> Any:
            if not ours(self.model_config):
                return original(self, request, engine_inputs, result_generator, *args, **kwargs)
            reports: Reports = {}

            async def noted() -> AsyncIterator[Any]:
                async for i, result in result_generator:
                    several = request.n or 1
                    _note(reports, result, first=i * several)
                    yield i, result

            stream = original(self, request, engine_inputs, noted(), *args, **kwargs)
            return _telling(stream, reports)

        return completion_stream_generator

    patch(OpenAIServingCompletion, "request_output_to_completion_response", make_full)
    patch(OpenAIServingCompletion, "completion_stream_generator", make_stream)


def _make_stream(original: Any) -> Any:
    def chat_completion_stream_generator(
        self: Any, request: Any, result_generator: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if not ours(self.model_config):
            return original(self, request, result_generator, *args, **kwargs)
        reports: Reports = {}
        results = _noting(result_generator, reports)
        return _telling(original(self, request, results, *args, **kwargs), reports)

    return chat_completion_stream_generator


async def _noting(
    results: AsyncIterator[Any], reports: Reports, first: int = 0
) -> AsyncIterator[Any]:
    async for result in results:
        _note(reports, result, first)
        yield result


def _note(reports: Reports, result: Any, first: int = 0) -> None:
    for output in result.outputs:
        if hasattr(output, KEY):
            reports[first + output.index] = output.diffusion


def _tell(response: Any, reports: Reports) -> Any:
    """A response with the reports in its choices; an error has none."""
    for choice in getattr(response, "choices", ()):
        if choice.index in reports:
            setattr(choice, KEY, reports[choice.index])
    return response


async def _telling(stream: AsyncIterator[str], reports: Reports) -> AsyncIterator[str]:
    """Server-sent events with the reports in the choices that finish."""
    async for event in stream:
        if '"finish_reason":"' in event and event.startswith("data: {"):
            chunk = json.loads(event.removeprefix("data: "))
            for choice in chunk.get("choices", ()):
                if choice.get("finish_reason") and choice["index"] in reports:
                    choice[KEY] = reports[choice["index"]]
            event = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        yield event
