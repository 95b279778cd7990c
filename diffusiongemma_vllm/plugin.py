"""Registration: what vLLM calls once in every process."""

from __future__ import annotations

from diffusiongemma_vllm import compat

MODEL = "diffusiongemma_vllm.runner.entry:DiffusionGemmaForBlockDiffusion"


def register() -> None:
    """Make vLLM serve DiffusionGemma with our model, state, sampler, scheduler and parsers.

    Raises:
        RuntimeError: for a version of vLLM that is not supported.
    """
    compat.check_version()
    from vllm.model_executor.models import ModelRegistry

    from diffusiongemma_vllm import nvfp4
    from diffusiongemma_vllm.parsers import registration

    ModelRegistry.register_model(compat.ARCHITECTURE, MODEL)
    compat.inspect_in_this_process(MODEL)
    nvfp4.register()
    compat.override_config_hook()
    compat.record_engine_args()
    compat.admit_requests()
    compat.check_adapters()
    compat.refuse_streams_early()
    compat.refuse_deep_sleep()
    compat.keep_files_encoded()
    compat.compile_by_back_end()
    compat.watch_frontends()
    registration.register()
