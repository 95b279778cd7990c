"""The schema of a request's ``diffusion_*`` arguments: ``extra_args``; in HTTP ``vllm_xargs``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from diffusiongemma_vllm.config import DenoiseConfig

PREFIX = "diffusion_"
MOST_STEPS = 1024  # far below 2^14, where the noise's counter would overflow
MOST_REROLLS = 16  # below 2^5, likewise


class Key(NamedTuple):
    """What a key takes: ``read`` returns the value, or raises ValueError with what it must be."""

    read: Callable[[Any], Any]
    field: str = ""  # of DenoiseConfig, where the key replaces the server's value


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number of {least}..{most}")
        return value

    return read


def _number(least: float, most: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if wrong or not least <= value <= most:
            raise ValueError(f"a number of {least:g}..{most:g}")
        return float(value)

    return read


def _flag(value: Any) -> bool:
    if value not in (0, 1):  # HTTP turns true into 1
        raise ValueError("true or false")
    return bool(value)


def _tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(
        isinstance(item, int) and not isinstance(item, bool) for item in value
    ):
        raise ValueError("a list of whole numbers")
    return tuple(value)


KEYS: Mapping[str, Key] = {
    "diffusion_max_denoising_steps": Key(_whole(1, MOST_STEPS), "max_steps"),
    "diffusion_t_min": Key(_number(1e-3, 100.0), "t_min"),
    "diffusion_t_max": Key(_number(1e-3, 100.0), "t_max"),
    "diffusion_entropy_bound": Key(_number(1e-6, 1e6), "entropy_bound"),
    "diffusion_stability_threshold": Key(_whole(0, MOST_STEPS), "stability_steps"),
    "diffusion_confidence_threshold": Key(_number(0.0, 1e6), "confidence"),
    "diffusion_canvas_length": Key(_whole(1, 1 << 20), "canvas_length"),
    "diffusion_max_steps": Key(_whole(1, MOST_STEPS), "step_limit"),
    "diffusion_seed_canvas": Key(_tokens),
    "diffusion_pinned": Key(_tokens),
    "diffusion_read_only": Key(_flag),
    "diffusion_constrained": Key(_flag),
    "diffusion_template": Key(_tokens),
    "diffusion_rerolls": Key(_whole(0, MOST_REROLLS)),
    "diffusion_drafts": Key(_whole(1, MOST_STEPS)),
}


@dataclass(frozen=True)
class CanvasOptions:
    """What one request asks of its canvases.

    rules: the server's rules with the request's own values in their place.
    seed_canvas: tokens that the first canvas starts from; empty starts from noise.
    template: tokens that the output is held to, -1 where the model is free; empty holds none.
    read_only: the first canvas is the whole output.
    constrained: only ``logprob_token_ids`` may be written.
    rerolls: how often the first canvas may be drawn again while it begins with the text's end.
    drafts: steps from one draft of the canvas to the next; 0 tells none.
    """

    rules: DenoiseConfig
    seed_canvas: tuple[int, ...] = ()
    template: tuple[int, ...] = ()
    read_only: bool = False
    constrained: bool = False
    rerolls: int = 0
    drafts: int = 0


def canvas_options(extra: Mapping[str, Any] | None, server: DenoiseConfig) -> CanvasOptions:
    """Read a request's arguments.

    Raises:
        ValueError: naming the key, what it must be and what it was.
    """
    given = {key: value for key, value in (extra or {}).items() if key.startswith(PREFIX)}
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise ValueError(f"unknown {', '.join(unknown)}: the keys are {', '.join(sorted(KEYS))}")
    values = {}
    for key, value in given.items():
        try:
            values[key] = KEYS[key].read(value)
        except ValueError as error:
            raise ValueError(f"{key} must be {error}, got {value!r}") from None
    own = {KEYS[key].field: value for key, value in values.items() if KEYS[key].field}
    rules = _rules(server, own)
    return CanvasOptions(
        rules=rules,
        seed_canvas=values.get("diffusion_seed_canvas", ()),
        template=_template(values, rules),
        read_only=values.get("diffusion_read_only", False),
        constrained=values.get("diffusion_constrained", False),
        rerolls=values.get("diffusion_rerolls", 0),
        drafts=values.get("diffusion_drafts", 0),
    )


def _rules(server: DenoiseConfig, own: Mapping[str, Any]) -> DenoiseConfig:
    length = own.get("canvas_length", 0)
    if length > server.canvas_length:
        raise ValueError(
            f"diffusion_canvas_length must be 1..{server.canvas_length}, the served canvas, got "
            f"{length}"
        )
    t_min, t_max = own.get("t_min", server.t_min), own.get("t_max", server.t_max)
    if t_min > t_max:
        raise ValueError(
            f"diffusion_t_min must not be above diffusion_t_max, got {t_min:g} and {t_max:g}; the "
            f"server's are {server.t_min:g} and {server.t_max:g}"
        )
    return replace(server, **own) if own else server


def _template(values: Mapping[str, Any], rules: DenoiseConfig) -> tuple[int, ...]:
    seed = values.get("diffusion_seed_canvas")
    if seed is not None and len(seed) != rules.canvas_length:
        raise ValueError(
            f"diffusion_seed_canvas must hold {rules.canvas_length} tokens, got {len(seed)}"
        )
    _in_vocabulary("diffusion_seed_canvas", seed or (), 0, rules)
    pinned = values.get("diffusion_pinned", ())
    if pinned and seed is None:
        raise ValueError("diffusion_pinned must come with a diffusion_seed_canvas to hold")
    wrong = [place for place in pinned if not 0 <= place < rules.canvas_length]
    if wrong:
        raise ValueError(
            f"diffusion_pinned must be places of the canvas, 0..{rules.canvas_length - 1}, got "
            f"{wrong}"
        )
    template = values.get("diffusion_template", ())
    _in_vocabulary("diffusion_template", template, -1, rules)
    if not pinned:
        return tuple(template)
    if template:
        raise ValueError("diffusion_template and diffusion_pinned must not both be given")
    held = [-1] * rules.canvas_length
    for place in pinned:
        held[place] = (seed or ())[place]
    return tuple(held)


def _in_vocabulary(key: str, tokens: Sequence[int], least: int, rules: DenoiseConfig) -> None:
    wrong = [token for token in tokens if not least <= token < rules.vocab_size]
    if wrong:
        raise ValueError(
            f"{key} must hold tokens of {least}..{rules.vocab_size - 1}, got {wrong[:8]}"
        )
