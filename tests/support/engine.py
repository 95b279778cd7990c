"""vLLM's engine in this process, on the CPU, with our plugin."""

from __future__ import annotations

import gc
import os
import time
from contextlib import ExitStack, contextmanager, nullcontext
from typing import NamedTuple
from unittest.mock import patch

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "DIFFUSIONGEMMA_VLLM_INTERPRETER": "1",  # before vLLM looks for Triton
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Threads that spin while they wait, pinned, make engines beside each other 20 times slower.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

_LIVING: list = []
CLEANUP = "vllm.v1.engine.core.cleanup_dist_env_and_memory"


@contextmanager
def engine(model, *, async_scheduling: bool = False, **options):
    """An ``LLM`` with token ids in and out; options as LLM takes them."""
    os.environ.update(ENVIRONMENT)
    import torch
    from vllm import LLM
    from vllm.platforms.cpu import CpuPlatform

    torch.set_num_threads(1)  # torch may have been imported before OMP_NUM_THREADS was set
    settings = dict(
        model=str(model), skip_tokenizer_init=True, max_model_len=1024, dtype="float32",
        max_num_seqs=4, disable_log_stats=True, kv_cache_memory_bytes=64 << 20,
    )
    original = CpuPlatform.check_and_update_config
    if async_scheduling:  # the CPU platform turns it off, and it runs all the same

        @classmethod
        def keep_async(cls, vllm_config):
            original(vllm_config)
            vllm_config.scheduler_config.async_scheduling = True

        CpuPlatform.check_and_update_config = keep_async
    gc.freeze()  # vLLM collects garbage seven times as it starts, and thaws all as it ends
    try:
        llm = LLM(**settings | options)
    finally:
        CpuPlatform.check_and_update_config = original
    _LIVING.append(llm)
    try:
        yield llm
    finally:
        _LIVING.remove(llm)
        # All engines of a process share its groups, which whoever ends would take along.
        with patch(CLEANUP) if _LIVING else nullcontext():
            llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        if not _LIVING:
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()


def runner(llm):
    """The model runner of an in-process engine."""
    core = llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner


def scheduler(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler


class Engines:
    """Engines by their options, started once and kept for a whole session."""

    def __init__(self, model):
        self.model = model
        self.stack = ExitStack()
        self.started = {}

    def __call__(self, **options):
        key = repr(sorted(options.items()))
        if key not in self.started:
            self.started[key] = self.stack.enter_context(engine(self.model, **options))
        return self.started[key]

    def close(self):
        self.stack.close()
        self.started.clear()


class Ask(NamedTuple):
    """One request; options are those of ``SamplingParams``, lora a ``LoRARequest``.

    media: further fields of the prompt, such as ``multi_modal_data``.
    """

    prompt: list[int]
    options: dict
    lora: object
    media: dict = {}


def draw_prompts(seed=1):
    """Draws prompts of so many random tokens, the same ones in the same order every time."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return lambda tokens: torch.randint(3, 500, (tokens,), generator=generator).tolist()


def ask(prompt, *, ignore_eos=True, lora=None, media=None, **options):
    options = dict(options, ignore_eos=ignore_eos, detokenize=False)
    return Ask(list(prompt), options, lora, media or {})


def serve(llm, asks, between=None, *, rest=True):
    """Run requests to their end; the outputs, in the order of ``asks``.

    between: called as ``between(step, outputs so far)`` after every engine step; it may abort
    requests (named "0", "1", ... by their place in asks) or do anything else to the engine.
    rest: the engine must have nothing left over.
    """
    from vllm import SamplingParams

    core = llm.llm_engine
    for i, one in enumerate(asks):
        core.add_request(
            str(i), {"prompt_token_ids": one.prompt} | one.media, SamplingParams(**one.options),
            lora_request=one.lora,
        )
    outputs, step, began = {}, 0, time.monotonic()
    try:
        while core.has_unfinished_requests():
            if not scheduler(llm).running:
                time.sleep(0.01)  # a grammar is being compiled
            for output in core.step():
                outputs[output.request_id] = output
            if between is not None:
                between(step, outputs)
            step += 1
            slow = time.monotonic() < began + 60
            assert step < 500 or slow, "the engine makes no progress"
    except BaseException:  # a timeout too: leave the engine to the next test
        core.abort_request([str(i) for i in range(len(asks))])
        raise
    if rest:
        at_rest(llm)
    return [outputs.get(str(i)) for i in range(len(asks))]


def texts(outputs):
    """Token ids of each output's first completion."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def at_rest(llm):
    """Let steps in flight come back, then: no request, no slot and no KV block is in use."""
    core = llm.llm_engine.engine_core.engine_core
    for _ in range(10):
        if core.scheduler.has_requests() or core.batch_queue:
            core.step_fn()
    found = scheduler(llm)
    assert not found.requests and not found.running and not found.waiting
    assert found.kv_cache_manager.usage == 0
    assert not core.batch_queue
    states = runner(llm).req_states
    assert len(states.free_indices) == states.max_num_reqs, states.req_id_to_index


def forget(llm):
    """Empty the prefix cache."""
    assert llm.llm_engine.reset_prefix_cache()


@contextmanager
def squeezed(llm, blocks):
    """Leave only so many KV blocks free, and tell of the preemptions: yields their request ids.

    Call ``serve`` with ``rest=False`` inside: the other blocks are in use.
    """
    found = scheduler(llm)
    pool = found.kv_cache_manager.block_pool
    taken = pool.get_new_blocks(pool.get_num_free_blocks() - blocks)
    preempted, original = [], type(found)._preempt_request

    def preempt(request, *args, **kwargs):
        preempted.append(request.request_id)
        return original(found, request, *args, **kwargs)

    found._preempt_request = preempt
    try:
        yield preempted
    finally:
        del found._preempt_request
        pool.free_blocks(taken)
    at_rest(llm)


@contextmanager
def chunked(llm, tokens):
    """Prefill no more than so many tokens of a prompt at a time, even of one that is alone."""
    found = scheduler(llm)
    config, schedule, count = found.scheduler_config, found.schedule, found.get_request_counts
    before = config.long_prefill_token_threshold

    def schedule_as_if_not_alone(*args, **kwargs):
        found.get_request_counts = lambda: (count()[0] + 1, count()[1])
        try:
            return schedule(*args, **kwargs)
        finally:
            del found.get_request_counts

    config.long_prefill_token_threshold = tokens
    found.schedule = schedule_as_if_not_alone
    try:
        yield
    finally:
        config.long_prefill_token_threshold = before
        del found.schedule


class Forward(NamedTuple):
    """One request's part of a forward: what it was on the device, its rows, what it gave out."""

    kind: str
    start: int
    rows: int
    emitted: int


def kind(phase, pending, rows):
    """phase and pending text of a slot before a forward of so many rows"""
    if phase == 0:
        return "P"
    if pending == 0:
        return "D"
    return "C" if rows <= pending else "F"


class Forwards:
    """What every forward did, seen from the sampler: log[i] is request id -> Forward."""

    def __init__(self, monkeypatch):
        from diffusiongemma_vllm.runner.sampler import DiffusionSampler

        self.log = []
        original = DiffusionSampler.__call__

        def call(sampler, hidden, batch):
            count = batch.num_reqs
            slots = batch.idx_mapping[:count]
            phases = sampler.state.phase[slots].tolist()
            pending = sampler.state.pending[slots].tolist()
            ends = batch.seq_lens[:count].tolist()
            out = original(sampler, hidden, batch)
            if not batch.req_ids[0].startswith("_warmup"):
                emitted = out.num_sampled.tolist()
                self.log.append({
                    name.rsplit("-", 1)[0]: Forward(
                        kind(phase, text, rows), end - int(rows), int(rows), got
                    )
                    for name, phase, text, end, rows, got in zip(
                        batch.req_ids, phases, pending, ends, batch.num_scheduled_tokens, emitted,
                        strict=True,
                    )
                })
            return out

        monkeypatch.setattr(DiffusionSampler, "__call__", call)

    def of(self, name):
        """The forwards of one request."""
        return [step[name] for step in self.log if name in step]

    def kinds(self, name):
        """P prefill, D denoise, C commit, F both of these; e.g. ``PDDDDCDDDDFDDD``"""
        return "".join(forward.kind for forward in self.of(name))
