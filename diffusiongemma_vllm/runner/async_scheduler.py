"""Scheduling canvases before it is known what the forward in flight settles."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from diffusiongemma_vllm.runner.scheduler import CanvasScheduler, behind


class AsyncCanvasScheduler(CanvasScheduler, AsyncScheduler):
    """Schedules the next forward while one is in flight.

    Whether that forward settles its canvas is known before it comes back at the step limit alone:
    then text and next canvas share a forward.  Otherwise the forward behind it is scheduled as one
    more step, and the device makes it the commit of a canvas that has settled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.latest = SchedulerOutput.make_empty()  # in flight
        self.coming: dict[str, int] = {}  # tokens of text that it settles for certain

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.coming = {}
        for request in self.running:
            self.foresee(request)
        self.latest = super().schedule(throttle_prefills)
        for request in self.running:
            if request.request_id not in self.latest.num_scheduled_tokens:
                self.forget(request)
        return self.latest

    def foresee(self, request: Request) -> None:
        """Take the canvas in flight for text to commit, if it settles for certain."""
        width = len(self.latest.scheduled_spec_decode_tokens.get(request.request_id, ()))
        if request.num_in_flight_tokens == 0 or width == 0 or not self.settles(request):
            return
        last = request.num_output_tokens + width >= request.max_tokens
        if last or request.num_tokens + width >= self.max_model_len:
            self.wait(request)  # nothing comes after it
        else:
            request.num_computed_tokens -= width
            self.coming[request.request_id] = width

    def forget(self, request: Request) -> None:
        """Take the canvas in flight for one that may go on, after all."""
        request.num_computed_tokens += self.coming.pop(request.request_id, 0)

    def settles(self, request: Request) -> bool:
        """Whether the step in flight is the last one its canvas may take, and all of it is text."""
        asked, report = self.asked[request.request_id], self.reports[request.request_id]
        whole = asked.rerolls == 0 and not constrained(request)
        return whole and report.steps + 1 >= asked.rules.last_step

    def wait(self, request: Request) -> None:
        """Leave it out until the forward in flight comes back; ``schedule`` counts its step up."""
        request.next_decode_eligible_step = max(
            request.next_decode_eligible_step, self.current_step + 2
        )

    def width(self, request: Request, text: int = 0) -> int:
        return super().width(request, text + self.coming.get(request.request_id, 0))

    def fit(self, request: Request) -> None:
        super().fit(request)
        room = self.max_model_len - request.num_computed_tokens - behind(request)
        cut = room < len(request.spec_token_ids)
        if request.num_output_placeholders > 0 and (cut or constrained(request)):
            # vLLM counts the canvas in flight as text and would cut the next forward, which reads
            # the same positions; a constrained canvas may give less text than it is wide.
            self.wait(request)

    def part(self, request: Request) -> None:
        if request.request_id in self.coming:
            request.spec_token_ids = [-1] * self.coming[request.request_id]
            self.forget(request)
            self.fit(request)
        else:
            super().part(request)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Any:
        places, text = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
        for name in self.coming.keys() & places.keys():
            assert text[places[name]], f"{name}: a canvas at its step limit gave no text"
        self.coming = {}
        return super().update_from_output(scheduler_output, model_runner_output)

    def uncommit(self, request: Request, width: int) -> None:
        in_flight = request.num_in_flight_tokens
        if in_flight > width:  # foreseen: it holds the text, and the next canvas behind it
            request.num_output_placeholders = in_flight - width
            return
        super().uncommit(request, width)
        # What is in flight was one more step of the canvas, and has become the commit.
        self.latest.scheduled_spec_decode_tokens.pop(request.request_id, None)


def constrained(request: Request) -> bool:
    params = request.sampling_params
    return params is not None and params.structured_outputs is not None


def scheduler(*args: Any, **kwargs: Any) -> CanvasScheduler:
    """The scheduler for a config, as ``SchedulerConfig.scheduler_cls`` calls it."""
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    cls = AsyncCanvasScheduler if config.scheduler_config.async_scheduling else CanvasScheduler
    return cls(*args, **kwargs)
