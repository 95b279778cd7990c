"""Which requests are let in: what cannot be honoured is refused before it reaches the engine."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.knobs import PREFIX, canvas_options
from diffusiongemma_vllm.request import draw_seed, only, request_options
from diffusiongemma_vllm.runner import adapters, dead_ends, listening, numbers, spans
from diffusiongemma_vllm.runner.constraint import INTERNAL
from diffusiongemma_vllm.runner.rules import server_rules

CAUSAL = (
    "the model writes a canvas at a time and was never trained to predict the next token of a "
    "prompt; ask for logprobs of the output instead, without echo, which asks for both (in a chat "
    "always)"
)
WRITES = (
    "diffusion_template", "diffusion_pinned", "diffusion_seed_canvas", "diffusion_constrained",
    "diffusion_read_only", "diffusion_rerolls",
)
MOST_CHARACTERS = 1 << 19  # of a constraint
MOST_BAD_WORDS = 1 << 16  # characters
MOST_CHOICES = 1000  # for guidance, whose parser takes 2,000 ways at a place
REASONS = {
    "prompt_logprobs": CAUSAL,
    "prompt_logprob_token_ids": CAUSAL,
    "trace_decode_token_ids": "tokens are not decoded one by one; hold them with "
    "vllm_xargs diffusion_template instead",
    "watermarking": "watermarks are drawn token by token",
}


def refused(params: Any) -> dict[str, str]:
    """The options of vLLM's ``SamplingParams`` that cannot be honoured, each with the reason."""
    asked = {
        "prompt_logprobs": params.prompt_logprobs is not None,
        "prompt_logprob_token_ids": params.prompt_logprob_token_ids is not None,
        "trace_decode_token_ids": params.trace_decode_token_ids is not None,
        "watermarking": params.watermarking is True,
    }
    return {name: REASONS[name] for name, used in asked.items() if used}


def check(params: Any) -> None:
    """Raises VLLMValidationError (HTTP 400) naming every option that cannot be honoured."""
    reasons = refused(params)
    if reasons:
        said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise VLLMValidationError(
            f"DiffusionGemma does not support {', '.join(reasons)}. Drop what is not supported "
            f"from the request. {said}.",
            parameter=next(iter(reasons)),
        )
    words = sum(map(len, params.bad_words or ()))
    if words > MOST_BAD_WORDS:
        raise VLLMValidationError(
            f"bad_words may have {MOST_BAD_WORDS:,} characters, got {words:,}",
            parameter="bad_words",
        )


def admit(request: Any, processor: Any) -> None:
    """Look at a request once vLLM has made it, and fill in what it leaves to chance.

    request: ``EngineCoreRequest``.  processor: vLLM's ``InputProcessor``, which knows the server.
    Raises VLLMValidationError for what cannot be honoured.
    """
    if request.resumable:
        refuse_resumable()
    if request.mm_features:
        check_pictures(request.mm_features, processor.vllm_config)
    params = request.sampling_params
    if params is None:
        return
    numbers.check(params)
    try:
        request_options(params)  # as the worker will
    except (TypeError, ValueError) as error:
        raise VLLMValidationError(f"a sampling parameter cannot be read: {error}") from None
    check_knobs(params, processor)
    check_tokens(params)
    listening.attach(params)
    if params.seed is None:
        params.seed = draw_seed(params.temperature)


_RULES: WeakKeyDictionary[Any, DenoiseConfig] = WeakKeyDictionary()


def check_knobs(params: Any, processor: Any) -> None:
    """Raises VLLMValidationError for a ``diffusion_*`` argument that is unknown or out of range.

    processor: vLLM's ``InputProcessor``, which knows the server that the request is for.
    """
    extra = params.extra_args or {}
    if strange := [key for key in extra if not isinstance(key, str)]:
        raise VLLMValidationError(
            f"extra_args must have strings for keys, got {strange[:8]}", parameter="vllm_xargs"
        )
    if not isinstance(extra.get("kv_transfer_params") or {}, dict):
        raise VLLMValidationError("kv_transfer_params must be an object", parameter="vllm_xargs")
    if own := sorted(INTERNAL & extra.keys()):
        raise VLLMValidationError(
            f"vllm_xargs: {', '.join(own)} is the engine's own; drop it", parameter="vllm_xargs"
        )
    if not any(key.startswith(PREFIX) for key in extra):
        return
    if processor not in _RULES:
        _RULES[processor] = server_rules(processor.vllm_config)
    try:
        asked = canvas_options(extra, _RULES[processor])
    except ValueError as error:
        raise VLLMValidationError(f"vllm_xargs: {error}", parameter="vllm_xargs") from None
    if asked.constrained and not params.logprob_token_ids:
        raise VLLMValidationError(
            "vllm_xargs: diffusion_constrained must come with logprob_token_ids, the tokens that "
            "may be written", parameter="vllm_xargs",
        )


def check_structured(params: Any) -> None:
    """Raises VLLMValidationError for options that could keep a grammar from its end."""
    extra = params.extra_args or {}
    clashing = {
        "ignore_eos": params.ignore_eos,
        "min_tokens": params.min_tokens > 0,
        "bad_words": bool(params.bad_words),
        "allowed_token_ids": bool(params.allowed_token_ids),
        **{key: bool(extra.get(key)) for key in WRITES},
    }
    found = [name for name, used in clashing.items() if used]
    if found:
        raise VLLMValidationError(
            f"structured outputs (response_format, tool_choice) do not go with {', '.join(found)}: "
            "only the grammar decides which tokens may come and when the text ends. Drop one of "
            "the two",
            parameter=found[0],
        )


def validate_structured(params: Any, config: Any, validate: Callable[[Any], None]) -> None:
    """Check a constraint, and choose its back end where the server leaves that open ("auto").

    JSON goes to guidance, which enforces a schema or refuses it: xgrammar leaves keywords out.
    Structural tags, and with them forced calls, go to xgrammar, which alone reads all of them.

    validate: vLLM's own check, given vLLM's ``StructuredOutputsConfig``.
    """
    asked = params.structured_outputs
    if not isinstance(asked, StructuredOutputsParams):
        refuse_constraint(asked, "a StructuredOutputsParams")
    check_structured(params)
    check_size(asked)
    schema = asked.json is not None or asked.json_object is not None
    many = len(asked.choice or ()) > MOST_CHOICES
    named = None if config is None else config.backend
    if named == "guidance" and many:
        raise VLLMValidationError(
            f"structured outputs: guidance reads {MOST_CHOICES} choices at most, got "
            f"{len(asked.choice)}; ask for fewer, or serve with --structured-outputs-config "
            "'{\"backend\": \"auto\"}'",
            parameter="structured_outputs",
        )
    if named == "guidance" and asked.structural_tag is not None:
        validate(replace(config, backend="xgrammar"))
    elif named != "auto" or many or not (schema or asked.regex or asked.choice):
        validate(config)
    else:
        try:
            validate(replace(config, backend="guidance"))
            asked._backend_was_auto = True
        except VLLMValidationError:
            if schema:
                raise
            asked._backend = None
            validate(config)
    if wrong := dead_ends.found(asked):
        raise VLLMValidationError(
            f"structured outputs: {wrong}. Ask for what a text can satisfy",
            parameter="structured_outputs",
        )


def refuse_constraint(asked: Any, wanted: str) -> None:
    raise VLLMValidationError(
        f"structured_outputs must be {wanted} with one of json, json_object, regex, choice, "
        f"grammar and structural_tag, got {reprlib.repr(asked)}; name one of them, or drop it",
        parameter="structured_outputs",
    )


def check_size(asked: Any) -> None:
    """asked: vLLM's ``StructuredOutputsParams``.  What is larger would hold up the others."""
    said = (asked.json, asked.regex, asked.grammar, asked.structural_tag, asked.choice)
    size = sum(len(one if isinstance(one, str) else json.dumps(one)) for one in said if one)
    if size > MOST_CHARACTERS:
        raise VLLMValidationError(
            f"structured outputs may have {MOST_CHARACTERS:,} characters, got {size:,}",
            parameter="structured_outputs",
        )


def check_tokens(params: Any) -> None:
    """Raises VLLMValidationError where the options together leave no token to write.

    Called once vLLM has filled in stop tokens and the tokens of bad words.
    """
    allowed = params.allowed_token_ids
    if (params.extra_args or {}).get("diffusion_constrained"):
        allowed = only(params.logprob_token_ids, allowed)
    elif not allowed:
        return
    barred = {word[-1] for word in params.bad_words_token_ids or ()}
    if params.min_tokens > 0:
        barred |= params.all_stop_token_ids
    if barred.issuperset(allowed):
        raise VLLMValidationError(
            "allowed_token_ids, or logprob_token_ids with diffusion_constrained, leaves no token "
            "to write beside the other, bad_words and min_tokens, which bars the end of the text; "
            "allow at least one more token",
            parameter="allowed_token_ids",
        )


def check_pictures(features: Any, vllm_config: Any) -> None:
    """Raises VLLMValidationError for a picture that no step could read whole, or whose place is not
    known.

    features: vLLM's ``MultiModalFeatureSpec`` of a request.
    """
    if any(feature.mm_position.is_embed is None for feature in features):
        raise VLLMValidationError(
            "pictures cannot come as tokens (/inference/v1/generate): which of them are the "
            "picture's is not said there; send the chat with the picture",
            parameter="features",
        )
    scheduler = vllm_config.scheduler_config
    canvases = vllm_config.diffusion_config.canvas_length * (scheduler.max_num_seqs - 1)
    room = max(scheduler.max_num_batched_tokens - canvases, 0)
    option, limit = "max-num-batched-tokens", room
    threshold = scheduler.long_prefill_token_threshold
    if 0 < threshold < room:
        option, limit = "long-prefill-token-threshold", threshold
    most = spans.longest(features)
    if most > limit:
        missing = most - limit
        need = (threshold if limit == threshold else scheduler.max_num_batched_tokens) + missing
        raise VLLMValidationError(
            f"a picture of {most} tokens is read in one step, and beside the other requests' "
            f"canvases a step has room for {limit}: lower max_soft_tokens, or start the server "
            f"with --{option} {need} or more",
            parameter="mm_processor_kwargs",
        )


def check_adapter(lora_request: Any, vllm_config: Any) -> None:
    """Raises VLLMValidationError for a LoRA adapter that the engine could not load."""
    config = vllm_config.model_config.hf_text_config
    try:
        adapters.check(lora_request, vllm_config.lora_config, config)
    except (ValueError, OSError) as error:
        raise VLLMValidationError(str(error), parameter="lora_request") from None


def refuse_beams() -> None:
    raise VLLMValidationError(
        "DiffusionGemma does not support beam search (use_beam_search): a beam grows token by "
        "token, a canvas is written as a whole. Drop it, or ask for several answers with n",
        parameter="use_beam_search",
    )


def refuse_sleep(level: int) -> None:
    """With the weights, it would drop what is packed of them, and the state of the slots."""
    raise VLLMValidationError(
        f"DiffusionGemma cannot sleep at level {level}: its weights cannot be loaded again into an "
        "engine that runs. Use level 0 or 1, or start the engine anew",
        parameter="level", value=level,
    )


def refuse_resumable() -> None:
    raise VLLMValidationError(
        "DiffusionGemma does not support streaming input (resumable requests): a canvas is written "
        "for a whole prompt. Send the prompt in one piece",
        parameter="resumable",
    )
