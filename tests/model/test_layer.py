"""What a layer does around its attention, against transformers' layer with attention bypassed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import rms_norm
from torch.testing import assert_close

from diffusiongemma_kernels.moe_gemm.types import Unsummed
from diffusiongemma_vllm.model.backbone import Layer

CLOSE = dict(rtol=1e-5, atol=1e-5)


class Bypassed(nn.Module):
    """In the place of an attention: gives out what it was given, through the output projection."""

    def __init__(self, attention, mixed):
        super().__init__()
        self.o_proj, self.mixed = attention.o_proj, mixed

    def forward(self, hidden_states, **_):
        return self.o_proj(self.mixed)[None], None


def reference_layer(stack, index, x, mixed, monkeypatch):
    layer = stack.layers[index]
    monkeypatch.setattr(layer, "self_attn", Bypassed(layer.self_attn, mixed))
    return layer(x[None])[0]


def attention_output(layer, rows):
    width = layer.self_attn.o_proj.input_size
    return torch.randn(len(rows), width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("mode", ["encoder", "decoder"])
def test_norms_mlp_experts_and_scalar(ours, theirs, rows, index, mode, monkeypatch):
    """Dense MLP and experts side by side, each between its norms, and the mode's own scalar."""
    layer = ours.model.layers[index]
    mixed = attention_output(layer, rows)
    encoder = theirs.model.encoder.language_model
    stack = encoder if mode == "encoder" else theirs.model.decoder
    want = reference_layer(stack, index, rows, mixed, monkeypatch)
    denoising = torch.full((len(rows),), mode == "decoder")
    following = torch.linspace(0.5, 2, rows.shape[1])
    got, normed = layer.after_attention(rows, mixed, denoising, following)
    assert_close(got, want, **CLOSE)
    assert_close(normed, rms_norm(want, want.shape[1:], following, 1e-6), **CLOSE)


def test_input_norm_comes_before_the_projections(ours, theirs, rows):
    layer, other = ours.model.layers[0], theirs.model.decoder.layers[0]
    angles = ours.model.rope(torch.arange(len(rows)), rows.dtype)[layer.self_attn.kind]
    got = layer.self_attn.project(layer.input_layernorm(rows), angles)
    want = layer.self_attn.project(other.input_layernorm(rows), angles)
    for ours_, theirs_ in zip(got, want, strict=True):
        assert_close(ours_, theirs_, **CLOSE)


def test_the_experts_read_the_stream_before_the_mlp(ours, rows):
    """Side by side, not one after the other: without the MLP the experts' share is the same."""
    layer = ours.model.layers[0]
    mixed = torch.zeros(len(rows), layer.self_attn.o_proj.input_size)
    x = rows + layer.post_attention_layernorm(layer.self_attn.o_proj(mixed))
    for_router = rms_norm(x, x.shape[1:], layer.router.scale, 1e-6) * x.shape[1] ** -0.5
    dense = layer.post_feedforward_layernorm_1(layer.mlp(layer.pre_feedforward_layernorm(x)))
    experts = layer.post_feedforward_layernorm_2(
        layer.experts(layer.pre_feedforward_layernorm_2(x), layer.router(for_router))
    )
    want = (x + layer.post_feedforward_layernorm(dense + experts)) * layer.encoder_scalar
    got, _ = layer.after_attention(rows, mixed, None, torch.ones(rows.shape[1]))
    assert_close(got, want, **CLOSE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel in the interpreter")
def test_several_ranks_tell_each_other_sums(ours, rows, monkeypatch):
    """What a GPU's experts leave for ``norms.leave`` to add up, where nobody else adds to it."""
    layer = ours.model.layers[0]
    ids = torch.tensor([[0, 7]] * len(rows), dtype=torch.int32)
    found = Unsummed(rows.repeat_interleave(2, 0), ids, 8)
    monkeypatch.setattr(layer.experts, "forward", lambda x, scores: found)
    assert layer.all_experts(rows, rows) is found
    monkeypatch.setattr(layer, "ranks", SimpleNamespace(count=2, sum=lambda x: -x))
    assert torch.equal(layer.all_experts(rows, rows), -2 * rows)


def test_scalars_of_the_two_modes_are_kept_apart(ours):
    """The checkpoint holds 0.5 + 0.1 i, decoder first, in the order of the names."""
    decoder = [float(layer.decoder_scalar) for layer in ours.model.layers]
    encoder = [float(layer.encoder_scalar) for layer in ours.model.layers]
    assert decoder == pytest.approx([0.5, 0.6, 0.7])
    assert encoder == pytest.approx([0.8, 0.9, 1.0])
    assert all(layer.scalars_differ for layer in ours.model.layers)


def test_a_mixed_batch_takes_each_rows_own_scalar(ours):
    layer = ours.model.layers[0]
    rows = layer.scalar(torch.tensor([True, False, True]))
    assert_close(rows, torch.tensor([[0.5], [0.8], [0.5]]))
    assert_close(layer.scalar(None), torch.tensor([0.8]))  # no canvas in the batch


def test_equal_scalars_are_one(ours):
    class Equal:
        scalars_differ = False
        encoder_scalar = torch.tensor([0.7])

    assert Layer.scalar(Equal(), torch.tensor([True, False])) is Equal.encoder_scalar
