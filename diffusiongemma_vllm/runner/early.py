"""Checks of HTTP requests before a stream's 200 is sent, not when its first chunk is due.

``compat.refuse_streams_early`` does so for chats and completions, whose handlers call the engine at
once.
"""

from __future__ import annotations

from typing import Any

from diffusiongemma_vllm.compat import check_early, ours, patch
from diffusiongemma_vllm.runner.admission import refuse_beams


def check_responses() -> None:
    """Their handler calls the engine from inside the stream.

    Removal: when it calls it before the stream begins.
    """
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    def make(original: Any) -> Any:
        def _generate_with_builtin_tools(
            self: Any, request_id: str, engine_input: Any, sampling_params: Any, *args: Any,
            **kwargs: Any,
        ) -> Any:
            if ours(self.model_config):
                engine_input = check_early(
                    self.engine_client.input_processor, engine_input, sampling_params, request_id,
                    kwargs,
                )
            return original(self, request_id, engine_input, sampling_params, *args, **kwargs)

        return _generate_with_builtin_tools

    patch(OpenAIServingResponses, "_generate_with_builtin_tools", make)


def refuse_beam_streams() -> None:
    """As ``compat.admit_requests`` does, but when it is called: it is a generator, read later.

    Removal: when ``beam_search`` looks at its parameters as it is called.
    """
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

    def make(original: Any) -> Any:
        def beam_search(self: Any, *args: Any, **kwargs: Any) -> Any:
            if ours(self.engine_client.model_config):
                refuse_beams()
            return original(self, *args, **kwargs)

        return beam_search

    patch(BeamSearchOnlineMixin, "beam_search", make)
