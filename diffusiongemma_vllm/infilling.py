"""Fill gaps in a text: the text is held, the gaps are denoised, and see what stands on both sides.

    infill(llm, ["def area(r):\n    return ", Gap(8), "\n"])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffusiongemma_vllm.markers import marker_tokens


class Gap(NamedTuple):
    """A place for up to ``tokens`` tokens."""

    tokens: int


@dataclass(frozen=True)
class Filled:
    """The whole ``text``, and what stands in each of its gaps."""

    text: str
    gaps: tuple[str, ...]


def infill(
    llm: Any, parts: Sequence[str | Gap], *, prompt: str | None = None, temperature: float = 0.0,
    seed: int | None = None,
) -> Filled:
    """Fill the gaps of ``parts`` with vLLM's ``LLM`` of a DiffusionGemma checkpoint.

    A text longer than a canvas is filled canvas after canvas; a gap sees what follows it as far as
    its canvas reaches.

    Args:
        prompt: what the model reads first, markers and all; the beginning of a text without it.

    Raises:
        ValueError: where there is no gap, or one without room, or more text than the context holds.
    """
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    template, places = _template(tokenizer, parts)
    start = [tokenizer.bos_token_id] if prompt is None else tokenizer.encode(
        prompt, add_special_tokens=False
    )
    most = llm.llm_engine.model_config.max_model_len
    if len(start) + len(template) > most:
        raise ValueError(
            f"prompt, texts and gaps have {len(start) + len(template)} tokens, more than "
            f"max_model_len, which is {most}"
        )
    params = SamplingParams(
        max_tokens=len(template), ignore_eos=True, temperature=temperature, seed=seed,
        detokenize=False, logit_bias=dict.fromkeys(marker_tokens(tokenizer), -100.0),
        extra_args={"diffusion_template": template},
    )
    answer = llm.generate({"prompt_token_ids": start}, params, use_tqdm=False)[0].outputs[0]

    def read(first: int, last: int) -> str:
        text: str = tokenizer.decode(answer.token_ids[first:last], skip_special_tokens=True)
        return text

    gaps = tuple(read(first, last) for first, last in places)
    filling = iter(gaps)
    whole = "".join(part if isinstance(part, str) else next(filling) for part in parts)
    return Filled(whole, gaps)


def _template(
    tokenizer: Any, parts: Sequence[str | Gap]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens to hold, -1 in the gaps, and where each gap begins and ends."""
    template: list[int] = []
    places = []
    for part in parts:
        if isinstance(part, str):
            template += tokenizer.encode(part, add_special_tokens=False)
            continue
        if part.tokens < 1:
            raise ValueError(f"a Gap must have room for 1 token or more, got {part.tokens}")
        places.append((len(template), len(template) + part.tokens))
        template += [-1] * part.tokens
    if not places:
        raise ValueError("there is no Gap to fill: put a Gap between the texts")
    return template, places
