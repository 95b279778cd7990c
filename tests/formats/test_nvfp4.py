"""NVFP4 by hand, by its properties, and bit for bit against NVIDIA's own class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusiongemma_kernels.formats.nvfp4 import (
    BLOCK,
    E2M1,
    NVFP4,
    decode,
    dequantize,
    encode,
    pack,
    quantize,
    unpack,
)

# nvidia-modelopt is in cpu.lock: without it this file fails, it does not skip.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_numbers_by_hand():
    x = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.2, 2.2, -2.9, 5.1, -100.0])
    assert encode(x).tolist() == [0, 0, 1, 9, 2, 4, 13, 7, 15]


def test_ties_go_to_the_even_code():
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert encode(middles).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert encode(-middles).tolist() == [8, 10, 10, 12, 12, 14, 14]


def test_every_code_comes_back():
    codes = torch.arange(16, dtype=torch.uint8)
    values = decode(codes)
    assert values[:8].tolist() == list(E2M1) and torch.equal(values[8:], -values[:8])
    assert torch.equal(decode(encode(values)), values)


def test_the_even_column_is_in_the_low_nibble():
    assert pack(torch.tensor([[1, 2, 3, 15]], dtype=torch.uint8)).tolist() == [[0x21, 0xF3]]


def test_every_byte_unpacks_and_packs():
    bytes_ = torch.arange(256, dtype=torch.uint8)[None]
    assert torch.equal(pack(unpack(bytes_)), bytes_)


def test_one_block_by_hand():
    """The largest of the matrix is 6 times 448 times the global scale."""
    w = torch.zeros(1, 2 * BLOCK)
    w[0, 0], w[0, 1], w[0, BLOCK] = 12.0, -1.0, 6.0
    q = quantize(w)
    assert q.global_scale.item() == pytest.approx(12 / 2688)
    assert q.scales.float().tolist() == [[448.0, 224.0]]
    assert unpack(q.codes)[0, :2].tolist() == [7, 9]
    assert torch.allclose(dequantize(q), w)


def test_blocks_and_matrices_of_zeros():
    w = random(3, 4, 64)
    w[0] = 0
    w[1, 2] = 0
    q = quantize(w)
    assert q.global_scale[0] == 1
    assert (q.scales[0].float() == 1).all() and (q.scales[1, 2].float() == 1).all()
    assert (dequantize(q)[0] == 0).all() and (dequantize(q)[1, 2] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(bad):
    w = random(2, 32)
    w[1, 7] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize(w)


@pytest.mark.parametrize(
    "w", [torch.ones(2, 24), torch.ones(16), torch.ones(2, 16, dtype=torch.int32)],
    ids=["no whole blocks", "no matrix", "no floats"],
)
def test_what_has_no_form_in_it_is_refused(w):
    with pytest.raises(ValueError, match="multiple of 16"):
        quantize(w)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_global_scale_is_positive(bad):
    with pytest.raises(ValueError, match="global scale"):
        quantize(random(2, 16), torch.tensor(bad))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6), st.floats(1e-6, 1e6))
def test_properties(seed, rows, blocks, size):
    w = random(rows, blocks * BLOCK, seed=seed) * size
    q = quantize(w)
    back = dequantize(q)
    # What is near a number of the format is at most half its neighbours' distance away, and a
    # block's scale is rounded by at most one part in 16.
    unit = (q.scales.float() * q.global_scale).repeat_interleave(BLOCK, dim=1)
    assert ((w - back).abs() <= 1.4 * unit).all()
    # A sign is kept, a rounded matrix is its own rounding, and a stack is rounded one by one.
    assert (back * w >= 0).all()
    again = quantize(back, q.global_scale)
    assert torch.equal(dequantize(again), back)
    stacked = quantize(torch.stack([w, 2 * w]))
    assert torch.equal(stacked.codes[0], q.codes) and torch.equal(stacked.codes[1], q.codes)
    assert stacked.global_scale[1] == 2 * q.global_scale


def grid(rows=64, columns=128):
    """Every middle between two numbers, at many scales: rounding is all ties."""
    steps = torch.arange(0, 6.25, 0.25)
    make = torch.Generator().manual_seed(1)
    w = steps[torch.randint(len(steps), (rows, columns), generator=make)]
    w[:, ::BLOCK] = 6.0
    return w * torch.exp2(torch.arange(rows)[:, None] % 9 - 4.0) * torch.tensor(-1.0) ** (
        torch.arange(columns)
    )


def zeros():
    w = random(48, 96)
    w[:, 16:48] = 0
    w[7] = 0
    return w


MATRICES = {
    "normal": random(704, 2816) * 0.02,
    "ties": grid(),
    "zero rows and blocks": zeros(),
    "far apart": random(64, 64) * 10.0 ** torch.arange(-8, 8).repeat(4),
    "bfloat16": (random(96, 192) * 0.05).bfloat16(),
}


@pytest.mark.parametrize("w", MATRICES.values(), ids=MATRICES)
def test_equal_to_modelopt(w):
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    tensor, scales, global_scale = NVFP4QTensor.quantize(w.clone(), BLOCK)
    ours = quantize(w)
    assert torch.equal(ours.codes, tensor._quantized_data)
    assert torch.equal(ours.scales.view(torch.uint8), scales.view(torch.uint8))
    assert torch.equal(ours.global_scale, global_scale)
    theirs = tensor.dequantize(
        torch.float32, scale=scales, double_scale=global_scale, block_sizes={-1: BLOCK}
    )
    assert torch.equal(dequantize(ours), theirs)


def test_equal_to_modelopt_with_a_shared_global_scale():
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    w, shared = random(32, 64), torch.tensor(7.5 / 2688)
    tensor, scales, _ = NVFP4QTensor.quantize(w.clone(), BLOCK, weights_scaling_factor_2=shared)
    ours = quantize(w, shared)
    assert torch.equal(ours.codes, tensor._quantized_data)
    assert torch.equal(ours.scales.view(torch.uint8), scales.view(torch.uint8))


def test_a_tuple_of_tensors_is_all_it_is():
    q = NVFP4(*quantize(random(2, 3, 32)))
    assert q.codes.shape == (2, 3, 16) and q.scales.shape == (2, 3, 2)
    assert q.global_scale.shape == (2,) and dequantize(q, torch.bfloat16).dtype == torch.bfloat16
