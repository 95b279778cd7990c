"""NaN or Inf in one request's numbers ends that request, and nobody else's are touched."""

import pytest
import torch
from engine import ask, runner, scheduler, serve, texts

pytestmark = pytest.mark.engine


def caches(llm):
    layers = runner(llm).compilation_config.static_forward_context.values()
    return [layer.kv_cache for layer in layers if isinstance(layer.kv_cache, torch.Tensor)]


def spoil(llm, name, value):
    """Overwrite a running request's pages; their numbers.

    Only the pages that no other request reads, as a fault of its own forward would.
    """
    found = scheduler(llm)
    (key,) = [key for key in found.requests if key.rsplit("-", 1)[0] == name]
    pages = {
        page.block_id
        for group in found.kv_cache_manager.coordinator.single_type_managers
        for page in group.req_to_blocks[key] if not page.is_null and page.ref_cnt == 1
    }
    for cache in caches(llm):
        parts = cache.unflatten(0, (runner(llm).kv_cache_config.num_blocks, -1))
        for page in pages:
            parts[page].fill_(value)
    return pages


@pytest.mark.parametrize("value", [
    pytest.param(float("nan"), id="nan"),
    pytest.param(float("inf"), id="inf", marks=pytest.mark.long),
])
def test_it_ends_alone(llm, prompts, value):
    """Its neighbours' text is what it is without it; its pages are clean before they are given out;
    the next request, which gets its slot and its pages, has the text it has on its own."""
    first, bad, third, later = (prompts(n) for n in (20, 70, 33, 70))
    asks = [ask(prompt, max_tokens=40, seed=i) for i, prompt in enumerate((first, bad, third))]
    after = ask(later, max_tokens=40, seed=9)
    well = texts(serve(llm, [asks[0], asks[2], after, asks[1]]))
    pages = set()

    def between(step, outputs):
        if step == 3:
            pages.update(spoil(llm, "1", value))

    out = serve(llm, asks, between)
    assert out[1].finished and out[1].outputs[0].finish_reason == "error"
    assert pages and len(out[1].outputs[0].token_ids) < 40
    assert [texts([out[i]])[0] for i in (0, 2)] == well[:2]
    again = serve(llm, [after, ask(bad, max_tokens=40, seed=1)])
    assert texts(again) == well[2:]
    assert all(cache.isfinite().all() for cache in caches(llm))


def test_pages_that_others_read_stay(llm, prompts):
    """Two requests share their prompt's pages; one goes bad behind them."""
    shared = prompts(200)
    asks = [ask(shared + prompts(5), max_tokens=40, seed=i) for i in range(2)]
    well = texts(serve(llm, asks))
    spoilt = []

    def between(step, outputs):
        if step == 3 and not spoilt:
            spoilt.append(spoil(llm, "1", float("nan")))

    out = serve(llm, asks, between)
    assert out[1].outputs[0].finish_reason == "error"
    assert texts(out)[0] == well[0]
    assert texts(serve(llm, asks)) == well
    assert all(cache.isfinite().all() for cache in caches(llm))
