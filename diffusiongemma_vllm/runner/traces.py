"""What a request's canvases cost, in the span that vLLM traces of it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from diffusiongemma_vllm.compat import patch
from diffusiongemma_vllm.runner.report import KEY

_TOLD: ContextVar[dict[str, Any] | None] = ContextVar("told", default=None)


def attributes(report: dict[str, Any]) -> dict[str, Any]:
    """Of a span, in OpenTelemetry's types."""
    canvases = report["canvases"]
    return {
        "gen_ai.diffusion.forwards": report["forwards"],
        "gen_ai.diffusion.canvases": len(canvases),
        "gen_ai.diffusion.steps": [canvas["steps"] for canvas in canvases],
        "gen_ai.diffusion.tokens": [canvas["tokens"] for canvas in canvases],
        "gen_ai.diffusion.stopped": [canvas["stopped"] for canvas in canvases],
        "gen_ai.diffusion.rerolls": sum(canvas.get("rerolls", 0) for canvas in canvases),
    }


def install() -> None:
    """In a process that takes requests.

    Removal: when a model can add attributes to the span that vLLM traces of a request.
    """
    from vllm.v1.engine import output_processor

    def make_tracing(original: Any) -> Any:
        def do_tracing(self: Any, engine_core_output: Any, *args: Any, **kwargs: Any) -> None:
            told = engine_core_output.kv_transfer_params or {}
            token = _TOLD.set(told.get(KEY))
            try:
                original(self, engine_core_output, *args, **kwargs)
            finally:
                _TOLD.reset(token)

        return do_tracing

    def make_span(original: Any) -> Any:
        def instrument_manual(*args: Any, **kwargs: Any) -> Any:
            if (report := _TOLD.get()) is not None:
                kwargs["attributes"] = (kwargs.get("attributes") or {}) | attributes(report)
            return original(*args, **kwargs)

        return instrument_manual

    patch(output_processor.OutputProcessor, "do_tracing", make_tracing)
    patch(output_processor, "instrument_manual", make_span)
