"""Compile what a start is going to launch side by side, before vLLM launches it one by one.

What vLLM does at its start to measure memory and to warm up is done first with launches that only
compile: as many kernels at once as there are processors.
"""

from __future__ import annotations

from typing import Any

import torch

from diffusiongemma_kernels.ahead import compiled_ahead
from diffusiongemma_vllm.compat import ours, patch

CANVASES = (1, 2, 4, 8)  # of rows: attention divides its keys by how many there are


def install() -> None:
    """Removal: when vLLM compiles a model's kernels side by side."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.v1.worker import gpu_worker
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    def make_profile(original: Any) -> Any:
        @torch.inference_mode()
        def profile_run(self: Any, *args: Any, **kwargs: Any) -> None:
            if ours(self.model_config):
                rows = min(self.decode_query_len, self.max_num_tokens)
                with compiled_ahead():
                    _, sampled = self._dummy_run(rows, skip_attn=True, is_profile=True)
                    if sampled is not None:
                        self._dummy_sampler_run(sampled)
            original(self, *args, **kwargs)

        return profile_run

    def make_warm_up(original: Any) -> Any:
        def warmup_kernels(runner: Any, *args: Any, **kwargs: Any) -> None:
            if ours(runner.model_config):
                with compiled_ahead():
                    original(runner, *args, **kwargs)
            original(runner, *args, **kwargs)

        return warmup_kernels

    def make_capture(original: Any) -> Any:
        def capture(self: Any, create_forward_fn: Any, *args: Any, **kwargs: Any) -> None:
            if ours(self.vllm_config.model_config):
                graphs = self._capture_descs.get(CUDAGraphMode.FULL, [])
                by_rows = {one.num_tokens: one for one in graphs}
                wanted = [count * self.decode_query_len for count in CANVASES]
                with compiled_ahead():
                    # The largest first: room for every graph's output is made by the first.
                    for rows in sorted(by_rows, reverse=True):
                        if rows in wanted or rows == max(by_rows):
                            create_forward_fn(by_rows[rows], warmup=True)(CUDAGraphMode.NONE)
            original(self, create_forward_fn, *args, **kwargs)

        return capture

    patch(GPUModelRunner, "profile_run", make_profile)
    patch(gpu_worker, "warmup_kernels", make_warm_up)
    patch(CudaGraphManager, "capture", make_capture)
