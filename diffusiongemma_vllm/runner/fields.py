"""Fields of HTTP requests: those that vLLM would drop are refused, a completion's suffix is kept.

Everything else that a field asks for reaches the engine in ``SamplingParams``, where ``admission``
looks at it.
"""

from __future__ import annotations

from typing import Any

from vllm.exceptions import VLLMValidationError

from diffusiongemma_vllm.compat import ours, patch
from diffusiongemma_vllm.markers import marker_tokens

TEMPLATE = "diffusion_template"


def install() -> None:
    refuse_documents()
    refuse_harmony_messages()
    fill_suffixes()


def refuse_documents() -> None:
    """Documents for a chat template that reads none."""
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

    def make(original: Any) -> Any:
        async def create_chat_completion(self: Any, request: Any, *args: Any, **kw: Any) -> Any:
            if request.documents and ours(self.model_config):
                template = self.chat_template or self.renderer.get_tokenizer().chat_template
                if "documents" not in (request.chat_template or template or ""):
                    raise VLLMValidationError(
                        "the chat template reads no documents; put them into a message",
                        parameter="documents",
                    )
            return await original(self, request, *args, **kw)

        return create_chat_completion

    patch(OpenAIServingChat, "create_chat_completion", make)


def refuse_harmony_messages() -> None:
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    def make(original: Any) -> Any:
        async def create_responses(self: Any, request: Any, *args: Any, **kw: Any) -> Any:
            if request.previous_input_messages and ours(self.model_config):
                raise VLLMValidationError(
                    "previous_input_messages are in another model's format (harmony); put earlier "
                    "turns into input",
                    parameter="previous_input_messages",
                )
            return await original(self, request, *args, **kw)

        return create_responses

    patch(OpenAIServingResponses, "create_responses", make)


def fill_suffixes() -> None:
    """Completions with a suffix: the text that goes between prompt and suffix."""
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion

    def make(original: Any) -> Any:
        async def create_completion(self: Any, request: Any, *args: Any, **kw: Any) -> Any:
            if request.suffix is not None and ours(self.model_config):
                request = held(request, self.renderer.get_tokenizer())
            return await original(self, request, *args, **kw)

        return create_completion

    patch(OpenAIServingCompletion, "create_completion", make)


def held(request: Any, tokenizer: Any) -> Any:
    """vLLM's ``CompletionRequest`` with a suffix  ->  one that has it held behind its text.

    The text has ``max_tokens`` tokens and is cut off before the suffix, which it has seen.  Raises
    VLLMValidationError for what would move the suffix, or hold the text already.
    """
    extra = dict(request.vllm_xargs or {})
    clashing = {
        "echo": request.echo, "truncate_prompt_tokens": request.truncate_prompt_tokens,
        f"vllm_xargs {TEMPLATE}": TEMPLATE in extra,
        "response_format": request.response_format, "min_tokens": request.min_tokens,
        "structured_outputs": request.structured_outputs,
    }
    found = [name for name, used in clashing.items() if used]
    if found:
        raise VLLMValidationError(
            f"suffix does not go with {', '.join(found)}: the text between prompt and suffix has "
            "max_tokens tokens. Drop one of the two",
            parameter="suffix",
        )
    behind = tokenizer.encode(request.suffix, add_special_tokens=False)
    barred = {str(token): -100.0 for token in marker_tokens(tokenizer)}
    return request.model_copy(update={
        "suffix": None, "ignore_eos": True, "logit_bias": barred | (request.logit_bias or {}),
        "vllm_xargs": extra | {TEMPLATE: [-1] * (request.max_tokens or 0) + behind},
    })
