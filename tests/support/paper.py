"""The real scheduler over a device of paper: requests of all kinds without a model."""

from __future__ import annotations

from collections import deque
from copy import copy
from dataclasses import dataclass, field

import torch

BLOCK = 16


def make_scheduler(config, *, asynchronous, blocks=10_000, **options):
    """Ours, over one group of full and one of sliding attention (64 tokens).

    options: of the scheduler's config.
    """
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        SlidingWindowSpec,
    )
    from vllm.v1.structured_output import StructuredOutputManager

    from diffusiongemma_vllm.runner import async_scheduler as module

    config, config.scheduler_config = copy(config), copy(config.scheduler_config)
    config.cache_config.num_gpu_blocks = blocks
    for name, value in options.items():
        setattr(config.scheduler_config, name, value)
    page = dict(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
    groups = [
        KVCacheGroupSpec(["full"], FullAttentionSpec(**page)),
        KVCacheGroupSpec(["sliding"], SlidingWindowSpec(**page, sliding_window=64)),
    ]
    cache = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    block_size, hash_block_size = resolve_kv_cache_block_sizes(cache, config)
    kind = module.AsyncCanvasScheduler if asynchronous else module.CanvasScheduler
    return kind(
        vllm_config=config, kv_cache_config=cache, log_stats=False,
        structured_output_manager=StructuredOutputManager(config), block_size=block_size,
        hash_block_size=hash_block_size,
    )


def hasher():
    """What hashes a request's pages for the prefix cache."""
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    function = get_hash_fn_by_name("sha256")
    init_none_hash(function)
    return get_request_block_hasher(BLOCK, function)


def make_request(name, prompt, block_hasher, **options):
    """prompt: tokens of it, all of them ``prompt``."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(**dict(ignore_eos=True, seed=1) | options)
    return Request(
        str(name), [prompt % 100 + 3] * prompt, params, None, block_hasher=block_hasher,
    )


@dataclass
class Slot:
    """What the device holds of a request."""

    text: int  # tokens known
    computed: int
    prefill: int
    length: int
    pending: int = 0
    step: int = 0
    canvas: bool = False
    kinds: str = ""


@dataclass
class Device:
    """Runs scheduled forwards as the sampler would, and checks that each makes sense.

    settles: name, number of the canvas -> denoise steps it takes.
    """

    limit: int
    settles: object
    steps: int
    slots: dict = field(default_factory=dict)
    canvases: dict = field(default_factory=dict)

    def run(self, output):
        from vllm.v1.outputs import ModelRunnerOutput

        for name in {*output.finished_req_ids, *(output.preempted_req_ids or ())}:
            self.slots.pop(name, None)
        for new in output.scheduled_new_reqs:
            asked = new.sampling_params.extra_args or {}
            self.slots[new.req_id] = Slot(
                len(new.prefill_token_ids), new.num_computed_tokens, len(new.prefill_token_ids),
                asked.get("diffusion_canvas_length", 32),
            )
        names = list(output.num_scheduled_tokens)
        text = [
            self.forward(name, output.num_scheduled_tokens[name],
                         len(output.scheduled_spec_decode_tokens.get(name, ())))
            for name in names
        ]
        return ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=text,
        )

    def forward(self, name, rows, drafts):
        slot = self.slots[name]
        if not slot.canvas:
            assert drafts == 0
            slot.computed += rows
            slot.canvas = slot.computed == slot.prefill
            assert slot.computed <= slot.prefill
            slot.kinds += "P"
            return []
        width = min(slot.length, self.limit - slot.text)
        committed = min(slot.pending, rows)
        slot.pending -= committed
        slot.computed += committed
        slot.kinds += "CF"[rows > committed] if committed else "D"
        if rows == committed:
            assert slot.pending == 0, "a text is committed whole"
            return []
        assert (rows - committed, drafts) == (width, width), (name, rows, committed, drafts)
        slot.step += 1
        canvas = self.canvases.get(name, 0)
        if slot.step < min(self.settles(name, canvas), self.steps):
            return []
        self.canvases[name] = canvas + 1
        slot.step, slot.pending = 0, width
        slot.text += width
        return [500 + canvas] * width


def serve(scheduler, device, requests, between=None):
    """Run to the end as the engine does; forwards, and each request's kinds and tokens.

    between: called with the number of each forward before it is scheduled.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.outputs import DraftTokenIds

    depth = 2 if isinstance(scheduler, AsyncScheduler) else 1
    for request in requests:
        scheduler.add_request(request)
    kinds, tokens = {}, {}
    queue, forwards, rounds = deque(), 0, 0
    while scheduler.has_requests() or queue:
        rounds += 1
        assert rounds < 2000, "no progress"
        if scheduler.has_requests():
            if between is not None:
                between(forwards)
            output = scheduler.schedule()
            result = device.run(output) if output.num_scheduled_tokens else None
            forwards += result is not None
            for name in output.num_scheduled_tokens:
                kinds[name] = kinds.get(name, "") + device.slots[name].kinds[-1]
            queue.appendleft((output, result))
            if len(queue) < depth and result is not None:
                continue
        output, result = queue.pop()
        if result is not None:
            for some in scheduler.update_from_output(output, result).values():
                for one in some.outputs:
                    tokens.setdefault(one.request_id, []).extend(one.new_token_ids)
        if depth == 1 and result is not None:
            names = list(output.num_scheduled_tokens)
            scheduler.update_draft_token_ids(DraftTokenIds(names, [[-1] * 32 for _ in names]))
    return forwards, kinds, tokens
