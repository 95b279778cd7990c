"""What a step needs of its rows: the fused kernels against the products they stand for."""

from types import SimpleNamespace

import pytest
import torch

from diffusiongemma_vllm.runner import belief

ROWS, VOCAB, HIDDEN = 6, 300, 16


class Model:
    model = SimpleNamespace(embed_scale=4.0)

    def __init__(self):
        make = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(VOCAB, HIDDEN, generator=make)
        self.projected = 0

    def project(self, hidden):
        self.projected += 1
        return hidden @ self.embedding.T


@pytest.fixture
def rows():
    make = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=make)
    return hidden, torch.linspace(0.4, 0.8, ROWS), torch.arange(ROWS), torch.arange(ROWS) * 7


def test_a_cpu_and_wide_numbers_have_no_fused_kernels():
    assert not belief.fuses(torch.zeros(2, 2, dtype=torch.bfloat16))


def test_the_fused_kernels_mean_the_same(rows, monkeypatch):
    hidden, *rest = rows
    model = Model()
    stats, mixed = belief.believe(model, hidden, None, *rest, 30.0)
    assert model.projected == 1
    monkeypatch.setattr(belief, "fuses", lambda weight: True)
    fused, also_mixed = belief.believe(model, hidden, None, *rest, 30.0)
    assert model.projected == 1, "the fused kernels need no logits from the model"
    for want, got in zip(stats, fused, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(also_mixed, mixed)


def test_bent_logits_are_read_as_they_are(rows, monkeypatch):
    monkeypatch.setattr(belief, "fuses", lambda weight: True)
    hidden, temperature, seed, counter = rows
    model = Model()
    logits = torch.full((ROWS, VOCAB), -torch.inf)
    logits[:, 7] = 3.0
    stats, mixed = belief.believe(
        model, hidden, logits, torch.ones_like(temperature), seed, counter, None
    )
    assert model.projected == 0 and stats.argmax.tolist() == stats.sample.tolist() == [7] * ROWS
    torch.testing.assert_close(mixed, model.embedding[7].mul(4.0).expand(ROWS, -1))
