"""CUDA graphs by the rows of a step, whatever requests they belong to.

vLLM replays a graph for requests of exactly one canvas each.  Our attention splits rows by tensors
on the device, so a graph of so many rows serves any mix of canvases, of commits and of both in one
request, and there may be more canvases of rows than requests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusiongemma_vllm.compat import ours, patch
from diffusiongemma_vllm.inputs import PARTS


def install() -> None:
    """Removal: when vLLM lets a model state say which graphs serve a batch."""
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    def make_gather(original: Any) -> Any:
        def gather_batch_req_state(self: Any, scheduler_output: Any, dummy_run: bool) -> Any:
            state, uniform = original(self, scheduler_output, dummy_run)
            if state is not None and ours(self.model_config) and not state.has_prefill:
                uniform = self.decode_query_len
            return state, uniform

        return gather_batch_req_state

    def make_candidates(original: Any) -> Any:
        def _init_candidates(self: Any) -> None:
            if not ours(self.vllm_config.model_config):
                return original(self)
            requests = self.max_num_reqs
            self.max_num_reqs = PARTS * requests
            try:
                original(self)
            finally:
                self.max_num_reqs = requests

            longest = PARTS * self.decode_query_len  # rows of one request

            def served(graphs: list[Any]) -> list[Any]:
                return [
                    replace(one, num_reqs=min(one.num_reqs, requests), max_query_len=longest)
                    for one in graphs
                ]

            for table in (self._capture_descs, self._candidates):
                for key, graphs in table.items():
                    table[key] = served(graphs)

        return _init_candidates

    patch(GPUModelRunner, "gather_batch_req_state", make_gather)
    patch(CudaGraphManager, "_init_candidates", make_candidates)
