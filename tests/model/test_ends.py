"""The two ends of the stack: embedding, self-conditioning, final norm, tied head, softcap."""

import header
import pytest
import torch
from modules import building, engine_config
from torch.testing import assert_close

from diffusiongemma_kernels.row_stats.op import row_stats
from diffusiongemma_vllm.denoise.rows import Softcap

CLOSE = dict(rtol=1e-5, atol=1e-5)


def test_embedding_is_scaled_by_the_root_of_its_width(ours, theirs):
    ids = torch.tensor([0, 1, 7, 511])
    assert ours.model.embed_scale == 8.0  # sqrt(64)
    assert torch.equal(ours.embed_input_ids(ids), theirs.model.decoder.embed_tokens(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_scale_is_rounded_to_the_models_dtype(tmp_path, dtype):
    """sqrt(2816) = 53.066 is 53 in bf16, and the reference rounds it."""
    from diffusiongemma_vllm.runner.entry import DiffusionGemmaForBlockDiffusion

    name = str(dtype).removeprefix("torch.")
    config = engine_config(header.write(tmp_path), load_format="dummy", dtype=name)
    with building(config, "meta"):
        model = DiffusionGemmaForBlockDiffusion(vllm_config=config)
    want = 53.0 if dtype is torch.bfloat16 else torch.tensor(2816**0.5).item()
    assert model.model.embed_scale == want


def test_the_head_is_the_embedding(ours, theirs, rows):
    assert ours.vocabulary.part.data_ptr() == ours.model.embed_tokens.weight.data_ptr()
    assert not any("lm_head" in name for name, _ in ours.named_parameters())
    assert_close(ours.project(rows), theirs.lm_head(rows), **CLOSE)


def test_padding_rows_of_the_embedding_are_left_out(ours):
    assert ours.vocabulary.part.shape == (512, 64)


def test_final_norm(ours, theirs, rows):
    assert_close(ours.model.norm(rows), theirs.model.decoder.norm(rows), **CLOSE)


def test_softcap_by_hand():
    """30 tanh(z / 30): nothing near 0, never beyond 30."""
    z = torch.tensor([[0.0, 0.01, 30.0, -1e6, 1e6]])
    want = torch.tensor([[0.0, 0.01, 30 * 0.761594, -30.0, 30.0]])
    assert_close(Softcap(30.0)(z), want)


def test_softcap_is_taken_in_fp32():
    """Of logits in bf16 the reference takes the cap in fp32; in bf16 24.2 would be 24.25."""
    logits = torch.tensor([[33.25, 1.0]], dtype=torch.bfloat16)
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    got = row_stats(logits, one, zero, zero, softcap=30.0).max
    want = torch.tanh(logits.float() / 30.0) * 30.0
    assert_close(got, want[:, 0], rtol=1e-6, atol=0)
    assert got.to(torch.bfloat16).float() != got


def test_self_conditioning_is_the_references(ours, theirs, rows):
    soft = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    got = ours.model.self_conditioning(rows, soft)
    assert_close(got, theirs.model.decoder.self_conditioning(rows, soft), **CLOSE)


def test_without_a_belief_the_embedding_is_only_normed(ours, rows):
    """At a canvas's first step the soft embedding is zero, and so is the MLP of it."""
    got = ours.model.self_conditioning(rows, torch.zeros_like(rows))
    want = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert_close(got, want, **CLOSE)


def test_only_denoise_rows_are_conditioned(ours, theirs, rows):
    """An encoder row enters as its raw scaled embedding, whatever stands in ``soft``."""
    denoising = torch.arange(len(rows)) % 3 == 0
    soft = torch.randn(rows.shape, generator=torch.Generator().manual_seed(3))
    got = ours.model.condition(rows, soft, denoising)
    assert torch.equal(got[~denoising], rows[~denoising])
    want = theirs.model.decoder.self_conditioning(rows, soft)
    assert_close(got[denoising], want[denoising], **CLOSE)
