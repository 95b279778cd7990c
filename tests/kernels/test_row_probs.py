import pytest
import torch

from diffusiongemma_kernels.row_probs import reference
from diffusiongemma_kernels.row_probs.op import row_probs_torch, row_probs_triton

CASES = [(1, 7, None, "one short row"), (3, 1030, 30.0, "a tile and a bit, softcapped"),
         (0, 64, 30.0, "empty step"), (5, 8200, None, "wide rows")]


@pytest.mark.parametrize("run", [row_probs_torch, row_probs_triton])
@pytest.mark.parametrize(("rows", "vocab", "softcap", "why"), CASES, ids=[c[3] for c in CASES])
def test_equals_softmax(run, rows, vocab, softcap, why, device):
    place = device if run is row_probs_triton else "cpu"
    g = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, vocab, generator=g).to(place) * 20
    temperature = torch.rand(rows, generator=g).to(place) + 0.2
    z = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    y = z / temperature[:, None]
    sums = y.logsumexp(1)
    probs = run(logits, temperature, sums, softcap=softcap, dtype=torch.float32)
    # y goes up to some hundreds, where a step of fp32 is 3e-5: so much is p off on a GPU
    rtol = 5e-5 if probs.is_cuda else 2e-5
    torch.testing.assert_close(probs, y.softmax(1), rtol=rtol, atol=1e-7)
    expected = reference.row_probs(logits, temperature, sums, softcap=softcap, dtype=torch.bfloat16)
    got = run(logits, temperature, sums, softcap=softcap, dtype=torch.bfloat16)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-6)


@pytest.mark.gpu
def test_real_shape_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    logits = torch.randn(256, 262144, device="cuda").bfloat16() * 8
    temperature = torch.full((256,), 0.6, device="cuda")
    y = 30 * torch.tanh(logits.float() / 30) / 0.6
    got = row_probs_triton(logits, temperature, y.logsumexp(1), softcap=30.0, dtype=torch.bfloat16)
    torch.testing.assert_close(got.float(), y.softmax(1), rtol=2e-2, atol=1e-8)
