"""Any number of GPUs together hold every expert once, and compute what one would."""

import pytest
import torch

from diffusiongemma_kernels.formats import shards
from diffusiongemma_kernels.formats.nvfp4 import dequantize, quantize
from diffusiongemma_kernels.moe_gemm.op import moe_torch
from diffusiongemma_kernels.moe_gemm.pack import pack, unpack

E, H, F, T, K = 6, 64, 80, 9, 3  # five blocks of columns, six experts


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


GATE_UP, DOWN = quantize(random(E, 2 * F, H, seed=0)), quantize(random(E, H, F, seed=1))
X, WEIGHTS = random(T, H, seed=2), random(T, K, seed=3).abs()
IDS = torch.stack([
    torch.randperm(E, generator=torch.Generator().manual_seed(t))[:K] for t in range(T)
]).int()


def run(ids, gate_up, down):
    return moe_torch(
        X, ids, WEIGHTS, pack(*gate_up, gate_up=True), pack(*down, gate_up=False)
    )


@pytest.mark.parametrize("ranks", range(1, 6))
def test_by_tensor_the_outputs_sum_to_the_whole(ranks):
    parts = [
        run(IDS, shards.gate_up(GATE_UP, rank, ranks), shards.down(DOWN, rank, ranks))
        for rank in range(ranks)
    ]
    torch.testing.assert_close(sum(parts), run(IDS, GATE_UP, DOWN), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("ranks", range(1, E + 1))
def test_by_experts_the_outputs_sum_to_the_whole(ranks):
    parts = [
        run(
            shards.local_ids(IDS, E, rank, ranks), shards.experts(GATE_UP, rank, ranks),
            shards.experts(DOWN, rank, ranks),
        )
        for rank in range(ranks)
    ]
    torch.testing.assert_close(sum(parts), run(IDS, GATE_UP, DOWN), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8, 11, 16, 22, 43, 44])
def test_the_real_shape_divides_over_any_number(ranks):
    """704 columns are 44 blocks: every one is somebody's, in order, and shares are even."""
    held = [shards.share(704 // 16, rank, ranks) for rank in range(ranks)]
    assert [n for part in held for n in range(part.start, part.stop)] == list(range(44))
    sizes = {part.stop - part.start for part in held}
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


@pytest.mark.parametrize("ranks", range(1, 6))
def test_by_tensor_every_number_is_somebodys(ranks):
    gate, up = zip(*(
        dequantize(shards.gate_up(GATE_UP, rank, ranks)).chunk(2, dim=1) for rank in range(ranks)
    ), strict=True)
    assert torch.equal(torch.cat(gate + up, dim=1), dequantize(GATE_UP))
    down = [dequantize(shards.down(DOWN, rank, ranks)) for rank in range(ranks)]
    assert torch.equal(torch.cat(down, dim=2), dequantize(DOWN))


@pytest.mark.parametrize("ranks", [2, 5])
def test_a_share_packs_like_a_whole(ranks):
    part = shards.gate_up(GATE_UP, 1, ranks)
    codes, scales, global_scale = unpack(pack(*part, gate_up=True), gate_up=True)
    assert torch.equal(codes, part.codes) and torch.equal(global_scale, part.global_scale)
    assert torch.equal(scales.view(torch.uint8), part.scales.view(torch.uint8))


def test_too_many_ranks_are_refused():
    with pytest.raises(ValueError, match="44 things cannot be divided over 45 ranks"):
        shards.share(44, 0, 45)
    with pytest.raises(ValueError, match="rank must be 0..1 of 2 ranks, got 2"):
        shards.share(44, 2, 2)
