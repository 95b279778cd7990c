"""Scheduling canvases: text goes out when a canvas settles, its KV is committed one forward later.

vLLM schedules a canvas as drafts.  A denoise step rejects all of them; the step that settles the
canvas gives out its tokens without advancing ``num_computed_tokens``, so that the tokens are known
but not yet computed; the next forward of the request computes them (the commit).  Prefix caching
and block hashes follow ``num_computed_tokens`` and so only ever see committed text.  A request that
ends with a canvas never commits it.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request

from diffusiongemma_vllm.denoise.walk import PATIENCE
from diffusiongemma_vllm.knobs import canvas_options
from diffusiongemma_vllm.runner.constraint import SHORTS, THOUGHT_FIRST
from diffusiongemma_vllm.runner.report import KEY, Report
from diffusiongemma_vllm.runner.rules import server_rules


class CanvasScheduler(Scheduler):
    """Schedules whole canvases, never a cut one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rules = server_rules(self.vllm_config)
        self.reports: dict[str, Report] = {}

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        asked = canvas_options(None if params is None else params.extra_args, self.rules)
        self.reports[request.request_id] = Report(asked.rules)
        if params is not None and request.use_structured_output:
            thought = not self.answers_at_once(request)
            params.extra_args = (params.extra_args or {}) | {THOUGHT_FIRST: thought}
        super().add_request(request)

    def answers_at_once(self, request: Request) -> bool:
        """Whether a constrained request has no thought before what its grammar is about."""
        asked, manager = request.structured_output_request, self.structured_output_manager
        reasoner = manager._get_reasoner(request)
        if asked is None or asked.reasoning_ended or reasoner is None:
            return True
        if manager.enable_in_reasoning:
            return True
        known = asked.reasoning_ended is not None
        return not known and bool(reasoner.is_reasoning_end(request.prompt_token_ids or []))

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        freed = super()._free_request(request, *args, **kwargs)
        self.reports.pop(request.request_id, None)
        return freed

    def width(self, request: Request) -> int:
        """Tokens of the request's next canvas: fewer than a canvas where the context ends."""
        length = self.reports[request.request_id].rules.canvas_length
        return max(0, min(length, self.max_model_len - request.num_tokens))

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # Canvases first: the token budget holds one for every request, prompts share the rest.
        self.running.sort(key=lambda request: request.is_prefill_chunk)
        for request in self.running:
            self.fit(request)
        output = super().schedule(throttle_prefills)
        for request in self.running:
            # Its grammar compiles; from here on the sampler follows it.
            request.structured_output_request = None
        output.has_structured_output_requests = False
        output.pending_structured_output_tokens = False
        return output

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return self.adapter_fits(request) and super()._handle_blocked_waiting_request(request)

    def adapter_fits(self, request: Request) -> bool:
        """Whether its LoRA adapter has a place beside those of all running requests.

        vLLM counts those that this very step runs, and asserts on the next one.
        """
        if request.lora_request is None or self.lora_config is None:
            return True
        used = {one.lora_request.lora_int_id for one in self.running if one.lora_request}
        own = request.lora_request.lora_int_id
        return own in used or len(used) < self.lora_config.max_loras

    def fit(self, request: Request) -> None:
        """Make the next canvas of ``request`` as wide as the context allows."""
        width = self.width(request)
        if len(request.spec_token_ids) > width:
            request.spec_token_ids = request.spec_token_ids[:width]

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.disown(request)
        params = request.sampling_params
        if params is not None and params.structured_outputs is not None:
            shorts = 0
            for canvas in self.reports[request.request_id].canvases:
                shorts = PATIENCE.count(shorts, canvas["tokens"])
            params.extra_args = (params.extra_args or {}) | {SHORTS: shorts}
        self.reports[request.request_id].restart()
        super()._preempt_request(request, *args, **kwargs)

    def disown(self, request: Request) -> None:
        """Take pages of ``request`` that no forward computes out of the prefix cache.

        vLLM enters a page when it schedules it; by priority the request may then lose its place
        in that very step.
        """
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            computed = request.num_computed_tokens // manager.block_size
            entered = manager.num_cached_block.get(request.request_id, 0)
            pages = manager.req_to_blocks[request.request_id][computed:entered]
            self.kv_cache_manager.evict_blocks({page.block_id for page in pages})

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """A request whose last canvas is not committed commits before it drafts again."""
        super().update_draft_token_ids(draft_token_ids)
        for request_id in draft_token_ids.req_ids:
            request = self.requests.get(request_id)
            if request is not None and request.num_tokens > request.num_computed_tokens:
                request.spec_token_ids = []

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Any:
        drafted = scheduler_output.scheduled_spec_decode_tokens
        rerolls = model_runner_output.num_nans_in_logits or {}  # see the sampler's ``_rolls``
        model_runner_output.num_nans_in_logits = None
        told = {}
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is None or request.num_stale_output_tokens > 0:
                continue
            start = request.num_computed_tokens - request.num_in_flight_tokens
            commit = start < request.num_tokens
            if commit and request_id in drafted:
                del drafted[request_id]  # these rows were a commit: nothing to reject
            report = told[request_id] = self.reports[request_id]
            report.forward(denoised=request_id in drafted)
            report.rerolled(rerolls.get(request_id, 0))
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for some in outputs.values():
            for output in some.outputs:
                if output.request_id in told:
                    known = output.kv_transfer_params or {}
                    output.kv_transfer_params = known | {KEY: told[output.request_id].told()}
        return outputs

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        width = len(new_token_ids)
        if not is_stale:
            self.reports[request.request_id].emit(width, width=self.width(request))
        result = Scheduler._update_request_with_output(self, request, new_token_ids)
        if not is_stale:
            self.uncommit(request, width)
        return result

    def uncommit(self, request: Request, width: int) -> None:
        """``width`` tokens of ``request`` are known and not computed.

        A forward already in flight computes them; otherwise the next one does, without drafts.
        """
        request.num_computed_tokens -= width
        request.num_output_placeholders = 0
        if request.num_in_flight_tokens == 0:
            request.spec_token_ids = []


class AsyncCanvasScheduler(CanvasScheduler, AsyncScheduler):
    """The same while one forward is in flight."""

    def fit(self, request: Request) -> None:
        super().fit(request)
        room = self.max_model_len - request.num_computed_tokens
        cut = room < len(request.spec_token_ids)
        params = request.sampling_params
        constrained = params is not None and params.structured_outputs is not None
        if request.num_output_placeholders > 0 and (cut or constrained):
            # vLLM counts the canvas in flight as text and would cut the next forward, which reads
            # the same positions; a constrained canvas may give less text than it is wide.
            # Wait for the result; ``schedule`` counts the step up first.
            request.next_decode_eligible_step = max(
                request.next_decode_eligible_step, self.current_step + 2
            )


def scheduler(*args: Any, **kwargs: Any) -> CanvasScheduler:
    """The scheduler for a config, as ``SchedulerConfig.scheduler_cls`` calls it."""
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    cls = AsyncCanvasScheduler if config.scheduler_config.async_scheduling else CanvasScheduler
    return cls(*args, **kwargs)
