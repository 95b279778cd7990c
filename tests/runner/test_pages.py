"""Pages of requests that went bad: who keeps them, who gets them, and that they are zero."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")
from diffusiongemma_vllm.runner import pages  # noqa: E402


def page(number, refs=0, null=False):
    return SimpleNamespace(block_id=number, ref_cnt=refs, is_null=null)


class Manager:
    """What is used of vLLM's KV cache manager."""

    def __init__(self, **requests):
        group = SimpleNamespace(req_to_blocks=requests)
        self.coordinator = SimpleNamespace(single_type_managers=[group, group])
        self.evicted = set()

    def evict_blocks(self, numbers):
        self.evicted |= numbers


def test_what_nobody_reads_is_due_once():
    own, shared = page(3, refs=1), page(4, refs=2)
    manager = Manager(bad=[page(0, null=True), own, shared], good=[shared])
    soiled = pages.Soiled(manager)
    assert soiled.due() == []
    soiled.take(["bad", "unknown"])
    assert manager.evicted == {3, 4}
    own.ref_cnt, shared.ref_cnt = 0, 1  # freed
    assert soiled.due() == [3]
    assert soiled.due() == []


def test_pages_of_two_that_go_bad_at_once_are_due():
    shared = page(4, refs=2)
    soiled = pages.Soiled(Manager(a=[shared], b=[shared]))
    soiled.take(["a", "b"])
    shared.ref_cnt = 0
    assert soiled.due() == [4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("parts", [1, 2], ids=["whole pages", "pages of two"])
def test_wipe(dtype, parts):
    """Those pages in every layer and nothing else; a cache may be strided, and hold no tensor."""
    store = torch.full((6 * parts, 3, 8), 1.0).to(dtype)
    store.view(torch.uint8).fill_(0x7F)
    strided = torch.full((3, 6 * parts, 8), float("nan")).transpose(0, 1)
    layers = [SimpleNamespace(kv_cache=store), SimpleNamespace(), SimpleNamespace(kv_cache=[]),
              SimpleNamespace(kv_cache=strided)]
    pages.wipe(layers, 6, [1, 4])
    for cache in (store, strided):
        zero = (cache.float().unflatten(0, (6, parts)) == 0).flatten(1)
        assert zero[[1, 4]].all() and not zero[[0, 2, 3, 5]].any()


def test_vllm_still_zeroes_where_it_did():
    import inspect

    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    pages.install()
    source = inspect.getsource(inspect.unwrap(GPUModelRunner.update_requests))
    assert "if scheduler_output.new_block_ids_to_zero:" in source
    assert "self.kv_block_zeroer.zero_block_ids(" in source
