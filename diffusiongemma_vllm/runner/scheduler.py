"""Scheduling canvases: text goes out when a canvas settles, its KV is committed by a later forward.

vLLM schedules a canvas as drafts.  A denoise step rejects all of them; the step that settles the
canvas gives out its tokens without advancing ``num_computed_tokens``, so that the tokens are known
but not yet computed.  The next forward of the request computes them (the commit), and where the
token budget has room for both it denoises the next canvas as well, as drafts behind the text.
Prefix caching and block hashes follow ``num_computed_tokens`` and so only ever see committed text.
A request that ends with a canvas never commits it.
"""

from __future__ import annotations

from math import isfinite, isnan
from typing import Any

from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from diffusiongemma_vllm.denoise.walk import PATIENCE
from diffusiongemma_vllm.knobs import CanvasOptions, canvas_options
from diffusiongemma_vllm.runner import cpu_wait, drafts, notes, spans, tally
from diffusiongemma_vllm.runner.constraint import SHORTS, THOUGHT_FIRST
from diffusiongemma_vllm.runner.pages import Soiled
from diffusiongemma_vllm.runner.report import KEY, Report
from diffusiongemma_vllm.runner.rules import server_rules
from diffusiongemma_vllm.runner.tally import Tally

logger = init_logger("vllm.diffusiongemma")
WRONG = {True: "NaN or Inf in its logits", False: "nothing may come next by its grammar"}


class CanvasScheduler(Scheduler):
    """Schedules whole canvases, never a cut one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if current_platform.is_cpu():
            cpu_wait.install()
        self.rules = server_rules(self.vllm_config)
        self.asked: dict[str, CanvasOptions] = {}
        self.reports: dict[str, Report] = {}
        self.soiled = Soiled(self.kv_cache_manager)
        self.tally = Tally(self.vllm_config.parallel_config.data_parallel_index)
        self.window = self.vllm_config.model_config.hf_text_config.sliding_window

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        asked = canvas_options(None if params is None else params.extra_args, self.rules)
        self.asked[request.request_id] = asked
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
        self.asked.pop(request.request_id, None)
        if (report := self.reports.pop(request.request_id, None)) is not None:
            self.tally.finish(report, request.num_output_tokens)
        return freed

    def width(self, request: Request, text: int = 0) -> int:
        """Tokens of the request's next canvas: fewer than a canvas where the context ends.

        text: tokens of a canvas that come before it and are not known yet.
        """
        length = self.asked[request.request_id].rules.canvas_length
        return max(0, min(length, self.max_model_len - request.num_tokens - text))

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        # Canvases first: the token budget holds one for every request, prompts share the rest.
        self.running.sort(key=lambda request: request.is_prefill_chunk)
        for request in self.running:
            self.fit(request)
        self.share()
        wiped = self.soiled.due()
        output = super().schedule(throttle_prefills)
        output.new_block_ids_to_zero = [*(output.new_block_ids_to_zero or ()), *wiped] or None
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

    def share(self) -> None:
        """Where there is no room for text and the next canvas together, the text goes alone."""
        threshold = self.scheduler_config.long_prefill_token_threshold
        drafting = [request for request in self.running if request.spec_token_ids]
        spare = self.max_num_scheduled_tokens - sum(
            max(behind(request), len(request.spec_token_ids)) for request in drafting
        )
        spare -= max(map(picture_next, self.running), default=0)  # which is read in one step
        for request in drafting:
            text, canvas = behind(request), len(request.spec_token_ids)
            if text == 0:
                continue
            if min(text, canvas) <= spare and (threshold == 0 or text + canvas <= threshold):
                spare -= min(text, canvas)
            else:
                self.part(request)

    def part(self, request: Request) -> None:
        """Commit text now, begin the next canvas in the forward after."""
        request.spec_token_ids = []

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int, *args: Any,
        **kwargs: Any,
    ) -> Any:
        """vLLM's, for as many tokens as leave no picture half read."""
        count = num_new_tokens
        if request.has_encoder_inputs:
            count = spans.whole(request.mm_features, num_computed_tokens, num_new_tokens)
        return super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, count, *args, **kwargs
        )

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        """vLLM's, cut back where the rest of a picture would see keys that were dropped."""
        hit = super()._get_local_prefix_cache_hit(request)
        manager = self.kv_cache_manager
        while request.has_encoder_inputs:
            most = spans.reach(request.mm_features, hit[1], self.window)
            if most is None:
                break
            blocks, count, _ = manager.coordinator.find_longest_cache_hit(
                request.block_hashes, most
            )
            hit = manager.create_kv_cache_blocks(blocks), count, 0, False
        return hit

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

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Any:
        drafted = scheduler_output.scheduled_spec_decode_tokens
        rerolls = model_runner_output.num_nans_in_logits or {}  # see the sampler's ``_told``
        model_runner_output.num_nans_in_logits = None
        failed = self.fail({name: told for name, told in rerolls.items() if not isfinite(told)})
        noted = notes.take(model_runner_output)
        told, sent = {}, []
        for request_id, rows in scheduler_output.num_scheduled_tokens.items():
            request = self.requests.get(request_id)
            if request is None or request.num_stale_output_tokens > 0:
                continue
            canvas = len(drafted.get(request_id, ()))
            report = told[request_id] = self.reports[request_id]
            report.forward(denoised=canvas > 0, committed=0 < canvas < rows)
            self.tally.forward(report, canvas=canvas, rows=rows)
            self.tally.rerolls += report.rerolled(int(rerolls.get(request_id, 0)))
            if request_id in noted.drafts:
                draft = noted.drafts[request_id] | {"canvas": len(report.canvases)}
                sent.append(drafts.Sent(request.client_index, request_id, draft))
        self.tally.batch(sum(request_id in drafted for request_id in told))
        self.tally.look(noted.load)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in failed:
            mine = outputs.setdefault(request.client_index, EngineCoreOutputs())
            mine.outputs.append(EngineCoreOutput(
                request_id=request.request_id, new_token_ids=[],
                finish_reason=request.get_finished_reason(), events=request.take_events(),
                trace_headers=request.trace_headers,
            ))
        for some in outputs.values():
            for output in some.outputs:
                if output.request_id in told:
                    known = output.kv_transfer_params or {}
                    output.kv_transfer_params = known | {KEY: told[output.request_id].told()}
        drafts.send(outputs, sent)
        if self.log_stats:
            tally.send(outputs, self.tally)
        self.tally = Tally(self.tally.engine)
        return outputs

    def fail(self, told: dict[str, float]) -> list[Request]:
        """End requests whose forward went wrong with an error, before any of it goes out.

        told: what the sampler says of each.  What a preempted request's last forward gave is
        nothing: it begins again.
        """
        found = [
            request for request in map(self.requests.get, told)
            if request is not None and request.num_stale_output_tokens == 0
        ]
        for request in found:
            logger.error(
                "request %s ends with an error: %s at token %d; its KV pages are wiped",
                request.request_id, WRONG[isnan(told[request.request_id])], request.num_tokens,
            )
        names = [request.request_id for request in found]
        self.soiled.take(names)
        return self.finish_requests(names, RequestStatus.FINISHED_ERROR)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        width, report = len(new_token_ids), self.reports[request.request_id]
        if not is_stale:
            report.emit(width, width=self.width(request))
        sure = self.before_a_stop(request, new_token_ids)
        request.append_output_token_ids(new_token_ids[:sure])
        rest, stopped = Scheduler._update_request_with_output(self, request, new_token_ids[sure:])
        text = new_token_ids[:sure] + rest
        if not is_stale:
            self.uncommit(request, width)
            self.tally.canvas(report, len(text), request.get_finished_reason() if stopped else None)
        return text, stopped

    def before_a_stop(self, request: Request, tokens: list[int]) -> int:
        """How many of ``tokens`` end nothing for certain: vLLM looks at the others one by one."""
        params = request.sampling_params
        if params is None or params.repetition_detection is not None:
            return 0
        ends = {params.eos_token_id, *(params.stop_token_ids or ())}
        first = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        room = min(
            self.max_model_len - request.num_tokens, request.max_tokens - request.num_output_tokens
        )
        return max(0, min(first, room - 1, len(tokens) - 1))

    def uncommit(self, request: Request, width: int) -> None:
        """``width`` tokens of ``request`` are known and not computed: the next forward does it."""
        request.num_computed_tokens -= width
        request.num_output_placeholders = 0


def picture_next(request: Request) -> int:
    """Tokens of the picture that a prompt has to read next; 0 for text."""
    at = request.num_computed_tokens
    found = spans.runs(request.mm_features, at, at + 1) if request.is_prefill_chunk else ()
    return max((end - at for _, end in found), default=0)


def behind(request: Request) -> int:
    """Tokens of its text that no forward has computed or is computing."""
    return request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
