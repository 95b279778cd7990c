"""Projections, norms and rotation of q, k and v against transformers, without the attention."""

import pytest
import torch
from torch.testing import assert_close
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import apply_rotary_pos_emb

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
    angles = ours.model.rope[attention.kind](POSITIONS, x.dtype)
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
    angles = ours.model.rope[attention.kind](positions, x.dtype)
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
