"""Projections, norms and rotation of q, k and v against transformers, and the way to the cache."""

from functools import partial

import pytest
import torch
from modules import engine_config
from torch.testing import assert_close
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import apply_rotary_pos_emb
from vllm.forward_context import set_forward_context

from diffusiongemma_kernels.paged import Batch
from diffusiongemma_kernels.qkv import reference
from diffusiongemma_vllm.model import attention as module
from diffusiongemma_vllm.model.backend import CanvasAttentionImpl, CanvasMetadata

LOCAL, GLOBAL = 0, 2
POSITIONS = torch.tensor([0, 1, 63, 64, 1000, 32768, 262143])


def expected(theirs, layer, x, positions):
    """q, k, v as transformers' attention makes them, [T, heads * D] each."""
    decoder = theirs.model.decoder
    attention = decoder.layers[layer].self_attn
    cos, sin = decoder.rotary_emb(x, positions[None], attention.layer_type)
    heads = (x.shape[0], -1, attention.head_dim)
    key = attention.k_proj(x).view(heads)
    value = key if attention.v_proj is None else attention.v_proj(x).view(heads)
    q = apply_rotary_pos_emb(attention.q_norm(attention.q_proj(x).view(heads)), cos[0], sin[0])
    k = apply_rotary_pos_emb(attention.k_norm(key), cos[0], sin[0])
    return [t.flatten(1) for t in (q, k, attention.v_norm(value))]


@pytest.mark.parametrize("layer", [LOCAL, GLOBAL])
def test_q_k_v_are_the_references(ours, theirs, rows, layer):
    x = rows[: len(POSITIONS)]
    attention = ours.model.layers[layer].self_attn
    angles = ours.model.rope(POSITIONS, x.dtype)[attention.kind]
    for got, want in zip(
        attention.project(x, angles), expected(theirs, layer, x, POSITIONS), strict=True
    ):
        assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_full_layer_has_no_v_proj(ours, theirs, rows):
    """The value is the key projection before its norm, normed without a weight, not rotated."""
    assert theirs.model.decoder.layers[GLOBAL].self_attn.v_proj is None
    attention = ours.model.layers[GLOBAL].self_attn
    x = rows[:5]
    positions = torch.arange(5) + 1000
    angles = ours.model.rope(positions, x.dtype)[attention.kind]
    _, k, v = attention.project(x, angles)
    key = theirs.model.decoder.layers[GLOBAL].self_attn.k_proj(x)
    mean = key.pow(2).mean(-1, keepdim=True)  # one key head: the row is one head
    assert_close(v, key * torch.rsqrt(mean + 1e-6), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(v, k)


def test_q_is_not_scaled(ours):
    """The norms of q and k do what a softmax scale does elsewhere."""
    assert {layer.self_attn.attn.impl.scale for layer in ours.model.layers} == {1.0}


def test_only_local_layers_have_a_window(ours):
    assert [layer.self_attn.attn.impl.window for layer in ours.model.layers] == [64, 64, 0]
    assert [layer.self_attn.head_dim for layer in ours.model.layers] == [32, 32, 64]
    assert [layer.self_attn.attn.num_kv_heads for layer in ours.model.layers] == [2, 2, 1]


class OnGpu(torch.Tensor):
    """A tensor on the CPU that says it is not."""

    is_cuda = True


@pytest.fixture
def gpu(monkeypatch):
    """The kernel's reference in its place; how often vLLM's layer has written to a cache."""
    updates = []

    def turned_into_cache(*inputs):
        return reference.turned_into_cache(*inputs).as_subclass(torch.Tensor)

    monkeypatch.setattr(module, "turned_into_cache", turned_into_cache)
    update = CanvasAttentionImpl.do_kv_cache_update

    def counted(*inputs):
        updates.append(1)
        update(*inputs)

    monkeypatch.setattr(CanvasAttentionImpl, "do_kv_cache_update", counted)
    return updates


@pytest.fixture
def step(ours, folder, monkeypatch):
    """step(layer, rows, metadata, slots), in the context that vLLM gives a forward."""
    config = engine_config(folder)
    layers = [layer.self_attn.attn for layer in ours.model.layers]
    for layer in layers:
        monkeypatch.setitem(
            config.compilation_config.static_forward_context, layer.layer_name, layer
        )

    def step(layer, rows, metadata=None, slots=None):
        attention = ours.model.layers[layer].self_attn
        angles = ours.model.rope(torch.arange(len(rows)), rows.dtype)[attention.kind]
        mapping = None if slots is None else {one.layer_name: slots for one in layers}
        metadata = metadata and dict.fromkeys((one.layer_name for one in layers), metadata)
        with set_forward_context(metadata, config, slot_mapping=mapping):
            return attention(rows, angles)

    return step


@pytest.mark.parametrize("layer", [LOCAL, GLOBAL])
@pytest.mark.parametrize("kind", ["auto", "fp8"])
def test_a_gpu_keeps_what_a_cpu_keeps(ours, step, rows, gpu, monkeypatch, layer, kind):
    """There vLLM's layer gets no key and no value; rows without a slot are not kept."""
    attn = ours.model.layers[layer].self_attn.attn
    monkeypatch.setattr(attn.impl, "kv_cache_dtype", kind)
    monkeypatch.setattr(attn, "_k_scale_float", 0.5 if kind == "fp8" else 1.0)
    x, count = rows[:21], 18
    slots = torch.cat([16 + torch.arange(16), torch.tensor([0, 1, -1])])  # page 1, then page 0
    ints = partial(torch.tensor, dtype=torch.int32)
    batch = Batch(ints([0, count]), ints([count]), ints([[1, 0]]), ints([0]), 21, 32)
    found = []
    for kept in (x, x.as_subclass(OnGpu)):
        shape = (3, attn.num_kv_heads, 16, 2 * attn.head_size)
        cache = torch.zeros(shape, dtype=torch.uint8 if kind == "fp8" else x.dtype)
        monkeypatch.setattr(attn, "kv_cache", cache)
        out = step(layer, kept, CanvasMetadata(batch), slots)
        cache = cache.view(torch.float8_e4m3fn).float() if kind == "fp8" else cache
        found.append((out[:count], cache))
        assert gpu == [1], "once, on the CPU"
    (out, cache), (got, mine) = found
    assert_close(got, out, rtol=1e-5, atol=1e-5)
    assert_close(mine, cache, rtol=1e-5, atol=1e-5)
    held = cache.ne(0).any(-1)  # [page, Hk, slot]
    assert held[1].all() and held[0, :, :2].all() and held.sum() == 18 * attn.num_kv_heads


@pytest.mark.parametrize("kind", [torch.Tensor, OnGpu])
def test_memory_is_profiled_without_a_cache(ours, step, rows, gpu, monkeypatch, kind):
    attn = ours.model.layers[GLOBAL].self_attn.attn
    monkeypatch.setattr(attn, "kv_cache", torch.tensor([]))
    out = step(GLOBAL, rows.as_subclass(kind))
    assert out.shape == (len(rows), attn.num_heads * attn.head_size) and not out.any()
