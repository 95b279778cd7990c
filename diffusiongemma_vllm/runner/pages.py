"""KV pages that hold no numbers: nobody finds them in the prefix cache, or gets them unwiped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from diffusiongemma_vllm.compat import patch


def owned(manager: Any, request_id: str) -> list[Any]:
    """The pages (``KVCacheBlock``) in which a request reads or writes."""
    groups = manager.coordinator.single_type_managers
    return [page for group in groups for page in group.req_to_blocks.get(request_id, ())
            if not page.is_null]


class Soiled:
    """Pages that wait to be wiped, by the forward that next might use them."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager
        self._pages: list[Any] = []

    def take(self, request_ids: Iterable[str]) -> None:
        """Before the requests are freed: what they leave behind, out of the prefix cache."""
        pages = [page for name in request_ids for page in owned(self.manager, name)]
        self.manager.evict_blocks({page.block_id for page in pages})
        self._pages += pages

    def due(self) -> list[int]:
        """Pages to wipe now, by number.  Those that a request still reads are left to it: it is
        found out by itself if they are bad, and if they are good they must stay.

        Call it with what is newly given out not yet given out.
        """
        due = sorted({page.block_id for page in self._pages if page.ref_cnt == 0})
        self._pages = []
        return due


def wipe(layers: Iterable[Any], blocks: int, pages: Iterable[int]) -> None:
    """Zero pages in every layer's cache.  blocks: pages of the whole cache."""
    caches = [layer.kv_cache for layer in layers if isinstance(
        getattr(layer, "kv_cache", None), Tensor)]
    for cache in caches:
        parts = cache.unflatten(0, (blocks, -1))  # a page may be several of the kernel's
        for page in pages:
            parts[page].zero_()


def install() -> None:
    """In a worker that serves our model: wipe what the scheduler names.

    vLLM sets its own zeroing up only for caches that always need it.  Removal: when it can be asked
    for.
    """
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    patch(GPUModelRunner, "update_requests", _make)


def _make(original: Any) -> Any:
    def update_requests(self: Any, scheduler_output: Any) -> None:
        pages = scheduler_output.new_block_ids_to_zero
        if pages and self.kv_block_zeroer is None:
            layers = self.compilation_config.static_forward_context.values()
            wipe(layers, self.kv_cache_config.num_blocks, pages)
            scheduler_output.new_block_ids_to_zero = None
        original(self, scheduler_output)

    return update_requests
