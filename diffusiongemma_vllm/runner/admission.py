"""Which requests are let in: what cannot be honoured is refused before it reaches the engine."""

from __future__ import annotations

from typing import Any

from vllm.exceptions import VLLMValidationError

DIFFUSION_KEYS = "diffusion_"


def refused(params: Any) -> list[str]:
    """The options of vLLM's ``SamplingParams`` that are asked for and cannot be honoured."""
    asked = {
        "min_p": params.min_p > 0,
        "min_tokens": params.min_tokens > 0,
        "logit_bias": bool(params.logit_bias),
        "bad_words": bool(params.bad_words),
        "allowed_token_ids": bool(params.allowed_token_ids),
        "presence_penalty": params.presence_penalty != 0,
        "frequency_penalty": params.frequency_penalty != 0,
        "repetition_penalty": params.repetition_penalty != 1,
        "logprobs": params.logprobs is not None,
        "logprob_token_ids": params.logprob_token_ids is not None,
        "prompt_logprobs": params.prompt_logprobs is not None,
        "prompt_logprob_token_ids": params.prompt_logprob_token_ids is not None,
        "thinking_token_budget": params.thinking_token_budget is not None,
        "structured_outputs (response_format)": params.structured_outputs is not None,
        "trace_decode_token_ids": params.trace_decode_token_ids is not None,
        "watermarking": params.watermarking is True,
    }
    extra = params.extra_args or {}
    asked |= {key: True for key in extra if key.startswith(DIFFUSION_KEYS)}
    return [name for name, used in asked.items() if used]


def check(params: Any) -> None:
    """Raises VLLMValidationError (HTTP 400) naming every option that cannot be honoured."""
    options = refused(params)
    if options:
        raise VLLMValidationError(
            f"DiffusionGemma does not support {', '.join(options)}: a canvas is denoised as a "
            "whole, and these options are not built for it yet. Drop them from the request; "
            "temperature, top_k, top_p, seed, max_tokens, stop, stop_token_ids, ignore_eos and n "
            "are supported.",
            parameter=options[0],
        )
