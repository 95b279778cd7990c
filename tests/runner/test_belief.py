"""What a step needs of its rows: the fused kernels against the products they stand for."""

from types import SimpleNamespace

import pytest
import torch
from vocabulary import Held

from diffusiongemma_vllm.runner import belief

ROWS, VOCAB, HIDDEN = 6, 300, 16


class Model:
    model = SimpleNamespace(embed_scale=4.0)
    text_config = SimpleNamespace(final_logit_softcapping=30.0)

    def __init__(self):
        make = torch.Generator().manual_seed(0)
        self.weight = torch.randn(VOCAB, HIDDEN, generator=make)
        self.vocabulary = Held(self.weight, self.project)
        self.projected = 0

    def project(self, hidden):
        self.projected += 1
        return hidden @ self.weight.T


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
    torch.testing.assert_close(mixed, model.weight[7].mul(4.0).expand(ROWS, -1))


def test_kernels_that_agree_pass_and_one_that_does_not_stops_the_start(monkeypatch):
    monkeypatch.setattr(belief, "fuses", lambda weight: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    model = Model()
    belief.prove(model)
    right = belief.soft_mix
    monkeypatch.setattr(belief, "soft_mix", lambda *args, **kw: right(*args, **kw).roll(1, 0))
    with pytest.raises(RuntimeError, match="soft_mix: our kernel is wrong on a GPU"):
        belief.prove(model)
    monkeypatch.setattr(belief, "soft_mix", right)
    read = belief.lm_head

    def nan(*args, **kw):
        reading = read(*args, **kw)
        reading.logits[0, 0] = torch.nan
        return reading

    monkeypatch.setattr(belief, "lm_head", nan)
    with pytest.raises(RuntimeError, match="lm_head: our kernel is wrong"):
        belief.prove(model)
