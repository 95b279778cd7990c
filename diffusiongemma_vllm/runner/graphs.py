"""CUDA graphs by the rows of a step, whatever requests they belong to.

vLLM replays a graph for requests of exactly one canvas each.  Our attention splits rows by tensors
on the device, so a graph of so many rows serves any mix of prompts, of canvases and of commits, a
request may have a commit and a canvas, and there may be more canvases of rows than requests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusiongemma_vllm.compat import ours, patch
from diffusiongemma_vllm.runner import spans

# What vLLM takes for the rows that every request of a graph has: a number no batch has by itself.
ANY_SPLIT = 2**30
SPARE = 8  # canvases of empty rows that take the GPU no longer than the launches of a forward


def install() -> None:
    """Removal: when vLLM lets a model state say which graphs serve a batch."""
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    def make_gather(original: Any) -> Any:
        def gather_batch_req_state(self: Any, scheduler_output: Any, dummy_run: bool) -> Any:
            state, uniform = original(self, scheduler_output, dummy_run)
            if state is not None and ours(self.model_config):
                uniform = ANY_SPLIT if replays(self.model_state, state) else None
            return state, uniform

        return gather_batch_req_state

    def make_candidates(original: Any) -> Any:
        def _init_candidates(self: Any) -> None:
            if not ours(self.vllm_config.model_config):
                return original(self)
            requests, canvas = self.max_num_reqs, self.decode_query_len
            self.max_num_reqs = _largest(self.vllm_config, requests, canvas)
            try:
                original(self)
            finally:
                self.max_num_reqs = requests
            for mode, graphs in self._capture_descs.items():
                self._capture_descs[mode] = [
                    replace(
                        one, num_reqs=min(one.num_reqs, requests), uniform_token_count=ANY_SPLIT
                    )
                    for one in graphs
                ]
            for tokens, adapters in self._candidates:
                self._candidates[tokens, adapters] = _serving(
                    tokens, adapters, self._capture_descs, spare=SPARE * canvas
                )

        return _init_candidates

    patch(GPUModelRunner, "gather_batch_req_state", make_gather)
    patch(CudaGraphManager, "_init_candidates", make_candidates)


def replays(state: Any, batch: Any) -> bool:
    """Whether a graph may serve a step.  state: our model state.  batch: a ``BatchReqState``"""
    if not batch.has_prefill:
        return True
    if state.expert_load.due(batch.num_tokens):
        return False
    pictures = state.encoder_cache.mm_features if state.supports_mm_inputs else {}
    return not spans.pictured(batch, pictures)


def _largest(vllm_config: Any, requests: int, canvas: int) -> int:
    """Canvases of rows of the largest graph: those of a step, and of so many whole requests.

    vLLM captures a graph with its rows spread over requests, whose pages it reads.
    """
    longest = vllm_config.model_config.max_model_len
    if longest < canvas:
        return 0
    rows = min(vllm_config.scheduler_config.max_num_batched_tokens, requests * longest)
    return rows // canvas


def _serving(tokens: int, adapters: int, captured: dict[Any, list[Any]], spare: int) -> list[Any]:
    """The graphs for so many rows, smallest first: those behind it are for more requests."""
    fitting = [
        one for graphs in captured.values() for one in graphs
        if one.num_active_loras == adapters and one.num_tokens >= tokens
    ]
    fitting.sort(key=lambda one: one.num_tokens)
    return fitting[:1] + [one for one in fitting[1:] if one.num_tokens <= tokens + spare]
