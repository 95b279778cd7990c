"""Who hears the drafts of a request, in the process that takes requests.

A request that asks for drafts is let in where somebody listens, and brings the listener to vLLM's
state of the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

from diffusiongemma_vllm.compat import patch
from diffusiongemma_vllm.runner import meters, tally
from diffusiongemma_vllm.runner.drafts import KEY

logger = init_logger("vllm.diffusiongemma")

ASKED = "diffusion_drafts"
NOBODY = (
    "vllm_xargs: diffusion_drafts has no stream to send drafts on. Ask for them with stream=true "
    "on /v1/chat/completions or /v1/completions; offline inside of "
    "diffusiongemma_vllm.on_draft(callback). Or drop diffusion_drafts"
)


@dataclass(frozen=True)
class Draft:
    """A canvas under way.  C: its tokens; fewer than the server's canvas at the context's end.

    request_id: of the ``RequestOutput`` that the canvas is for.  index: of its completion.
    prompt_tokens: how many its prompt has.
    canvas: canvases that gave text before.  step: denoise steps done.  rerolls: how often the
    canvas was drawn again.
    tokens: [C], what the canvas holds: noise, but where ``settled``.  guess: [C], the likeliest
    tokens.  settled: [C], where the canvas's token was accepted.  entropy: [C], nats.
    done: the canvas has settled, and ``tokens`` where ``settled`` are the text that it gives.
    ends: tokens that end the text.
    """

    request_id: str
    prompt_tokens: int
    index: int
    canvas: int
    step: int
    rerolls: int
    done: bool
    tokens: list[int]
    guess: list[int]
    settled: list[bool]
    entropy: list[float]
    ends: frozenset[int]


Listener = Callable[[Draft], None]

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def on_draft(callback: Listener) -> Iterator[None]:
    """Call ``callback`` with every ``Draft`` of requests that are made in here and ask for drafts.

        with on_draft(show):
            llm.generate(prompts, SamplingParams(extra_args={"diffusion_drafts": 1}))

    The value is how many denoise steps lie between two drafts of a canvas; the step that settles
    it has a draft always.  The callback runs between two steps: what takes long holds them up.

    Raises what the callback raised first, at the end: the requests run on, and nobody listens any
    more.
    """
    errors: list[Exception] = []

    def heard(draft: Draft) -> None:
        if not errors:
            try:
                callback(draft)
            except Exception as error:  # noqa: BLE001  the engine is between two steps
                logger.exception("on_draft's callback failed, and hears nothing more")
                errors.append(error)

    with heard_by(heard):
        yield
    if errors:
        raise errors[0]


@contextmanager
def heard_by(found: Listener) -> Iterator[None]:
    """The same with a listener that does not fail."""
    token = _LISTENER.set(found)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener() -> Listener | None:
    """Who listens here and now."""
    return _LISTENER.get()


class Heard(dict[str, Any]):
    """A request's ``extra_args`` with whom to tell."""

    listener: Listener


def attach(params: Any) -> None:
    """Raises VLLMValidationError where a request asks for drafts and nobody listens."""
    if not (params.extra_args or {}).get(ASKED):
        return
    if (found := listener()) is None:
        raise VLLMValidationError(NOBODY, parameter="vllm_xargs")
    params.extra_args = Heard(params.extra_args)
    params.extra_args.listener = found


def keep_context(processor: Any) -> None:
    """Raw prompts are tokenized by a thread, which would not know who listens."""
    from vllm.utils.async_utils import make_async

    def run(context: Context, *args: Any, **kwargs: Any) -> Any:
        return context.run(processor.process_inputs, *args, **kwargs)

    process = make_async(run, executor=processor.renderer._executor)
    processor.process_inputs_async = lambda *args, **kwargs: process(
        copy_context(), *args, **kwargs
    )


def hear() -> None:
    """Hand drafts to their listeners, before vLLM looks at what else a step gave.

    Removal: when a model may send more of a request than tokens.
    """
    from vllm.v1.engine.output_processor import OutputProcessor

    def make_add(original: Any) -> Any:
        def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
            original(self, request, *args, **kwargs)
            params = request.sampling_params
            if params is not None and isinstance(params.extra_args, Heard):
                state = self.request_states[request.request_id]
                state.listener = params.extra_args.listener
                state.ends = frozenset(params.all_stop_token_ids)

        return add_request

    def make_process(original: Any) -> Any:
        def process_outputs(self: Any, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
            rest = [output for output in outputs if _keep(self.request_states, output)]
            return original(self, rest, *args, **kwargs)

        return process_outputs

    patch(OutputProcessor, "add_request", make_add)
    patch(OutputProcessor, "process_outputs", make_process)


def _keep(states: dict[str, Any], output: Any) -> bool:
    """Tell the draft or the tally that an output brings; whether it brings anything else."""
    told = output.kv_transfer_params
    if told is not None and tally.KEY in told:
        meters.record(told[tally.KEY])
        return False
    if told is None or KEY not in told:
        return True
    state = states.get(output.request_id)
    if state is not None:
        draft = Draft(
            request_id=state.external_req_id, prompt_tokens=state.prompt_len,
            index=state.request_index, ends=state.ends, **told[KEY],
        )
        state.listener(draft)
    output.kv_transfer_params = {key: value for key, value in told.items() if key != KEY} or None
    return bool(output.new_token_ids) or output.finished
