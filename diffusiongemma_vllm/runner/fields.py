"""Fields of HTTP requests: those that vLLM would drop are refused, a completion's suffix is kept.

Everything else that a field asks for reaches the engine in ``SamplingParams``, where ``admission``
looks at it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastapi import Request
from vllm.exceptions import VLLMValidationError

from diffusiongemma_vllm.compat import ours, patch
from diffusiongemma_vllm.markers import marker_tokens
from diffusiongemma_vllm.media.options import MediaOptions
from diffusiongemma_vllm.runner import adapters
from diffusiongemma_vllm.runner.admission import refuse_constraint

TEMPLATE = "diffusion_template"


def install() -> None:
    from vllm.entrypoints.generate.generative_scoring.serving import ServingGenerativeScoring
    from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.entrypoints.scale_out.token_in_token_out.serving import ServingTokens

    read_first(OpenAIServingChat, "create_chat_completion", chat)
    read_first(OpenAIServingChatBatch, "create_batch_chat_completion", chats)
    read_first(OpenAIServingCompletion, "create_completion", completion)
    read_first(OpenAIServingResponses, "create_responses", response)
    read_first(ServingTokens, "serve_tokens", plain)
    read_first(ServingGenerativeScoring, "create_generative_scoring", plain)
    look_at_adapters()
    look_at_bodies()


def read_first(owner: Any, name: str, read: Callable[[Any, Any], Any]) -> None:
    """Have a handler's requests for DiffusionGemma read by ``read(handler, request)``.

    It returns the request to answer, or raises VLLMValidationError (HTTP 400).  Removal: when vLLM
    tells a model of every field of a request.
    """

    def make(original: Any) -> Any:
        async def handle(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            if ours(self.model_config):
                check_priority(request, self.engine_client.vllm_config)
                request = read(self, request)
            return await original(self, request, *args, **kwargs)

        return handle

    patch(owner, name, make)


def look_at_adapters() -> None:
    """An adapter to be loaded that cannot be served: HTTP 400, as for one that a request names.

    Removal: when vLLM tells an adapter's faults from the engine's.
    """
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve import create_error_response
    from vllm.lora.request import LoRARequest

    def make(original: Any) -> Any:
        async def _check_load_lora_adapter_request(self: Any, request: Any) -> Any:
            config = self.engine_client.vllm_config
            found = await original(self, request)
            if found is not None or not ours(config.model_config):
                return found
            asked = LoRARequest(request.lora_name, 1, request.lora_path)
            try:
                with suppress(OSError):  # one that is not there is the engine's 404
                    adapters.check(asked, config.lora_config, config.model_config.hf_text_config)
            except ValueError as error:
                return create_error_response(VLLMValidationError(str(error), parameter="lora_path"))
            return None

        return _check_load_lora_adapter_request

    patch(OpenAIServingModels, "_check_load_lora_adapter_request", make)


def look_at_bodies() -> None:
    """A constraint that is no object: HTTP 400, where vLLM's own check of it ends in a 500.

    Removal: when ``check_structured_outputs_count`` of vLLM's requests leaves it to pydantic.
    """
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.serve.utils.api_utils import validate_json_request

    async def look(raw_request: Request) -> None:
        await validate_json_request(raw_request)
        try:
            body = await raw_request.json()
        except ValueError:  # vLLM refuses what is no JSON
            return
        check_body(body)

    def make(original: Any) -> Any:
        def build_app(args: Any, tasks: Any = None, model_config: Any = None) -> Any:
            app = original(args, tasks, model_config)
            if model_config is not None and ours(model_config):
                # It comes before the fields of every JSON body.
                app.dependency_overrides[validate_json_request] = look
            return app

        return build_app

    patch(entry, "build_app", make)


def check_body(body: Any) -> None:
    """body: JSON."""
    asked = body.get("structured_outputs") if isinstance(body, dict) else None
    if asked is not None and not isinstance(asked, dict):
        refuse_constraint(asked, "an object")


def check_priority(request: Any, vllm_config: Any) -> None:
    if request.priority and vllm_config.scheduler_config.policy != "priority":
        raise VLLMValidationError(
            "requests are served in the order they come, whatever their priority; drop it, or "
            "serve with --scheduling-policy priority",
            parameter="priority",
        )


def check_pictures(request: Any) -> None:
    """Without a picture nobody else reads these."""
    if request.media_io_kwargs:
        raise VLLMValidationError(
            "media_io_kwargs are for vLLM's own readers of files; use mm_processor_kwargs",
            parameter="media_io_kwargs",
        )
    try:
        MediaOptions().changed(request.mm_processor_kwargs)
    except ValueError as error:
        raise VLLMValidationError(str(error), parameter="mm_processor_kwargs") from None


def chat(handler: Any, request: Any) -> Any:
    """Documents are for a chat template that reads them."""
    check_pictures(request)
    if request.documents:
        template = handler.chat_template or handler.renderer.get_tokenizer().chat_template
        if "documents" not in (request.chat_template or template or ""):
            raise VLLMValidationError(
                "the chat template reads no documents; put them into a message",
                parameter="documents",
            )
    return request


def plain(handler: Any, request: Any) -> Any:
    return request


def chats(handler: Any, request: Any) -> Any:
    """Several at once; its requests have no documents."""
    check_pictures(request)
    return request


def response(handler: Any, request: Any) -> Any:
    check_pictures(request)
    if request.previous_input_messages:
        raise VLLMValidationError(
            "previous_input_messages are in another model's format (harmony); put earlier turns "
            "into input",
            parameter="previous_input_messages",
        )
    return request


def completion(handler: Any, request: Any) -> Any:
    if not request.suffix:  # vLLM refuses one that is there and empty
        return request.model_copy(update={"suffix": None})
    return held(request, handler.renderer.get_tokenizer())


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
