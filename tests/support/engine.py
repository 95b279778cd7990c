"""vLLM's engine in this process, on the CPU, with our plugin."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "DIFFUSIONGEMMA_VLLM_INTERPRETER": "1",  # before vLLM looks for Triton
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@contextmanager
def engine(model, *, async_scheduling: bool = False, **options):
    """An ``LLM`` with token ids in and out; options as LLM takes them."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM
    from vllm.platforms.cpu import CpuPlatform

    settings = dict(
        model=str(model), skip_tokenizer_init=True, max_model_len=1024, dtype="float32",
        max_num_seqs=4, disable_log_stats=True,
    )
    original = CpuPlatform.check_and_update_config
    if async_scheduling:  # the CPU platform turns it off, and it runs all the same

        @classmethod
        def keep_async(cls, vllm_config):
            original(vllm_config)
            vllm_config.scheduler_config.async_scheduling = True

        CpuPlatform.check_and_update_config = keep_async
    try:
        llm = LLM(**settings | options)
    finally:
        CpuPlatform.check_and_update_config = original
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


def runner(llm):
    """The model runner of an in-process engine."""
    core = llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner


def scheduler(llm):
    return llm.llm_engine.engine_core.engine_core.scheduler
