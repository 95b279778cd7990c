"""Expert kernels that are wrong on the machine at hand stop the start."""

from types import SimpleNamespace

import pytest
import torch

from diffusiongemma_vllm.model import selfcheck
from diffusiongemma_vllm.model.experts import DenseExperts
from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.model.share import Share

CONFIG = SimpleNamespace(
    num_experts=8, hidden_size=64, moe_intermediate_size=32, top_k_experts=2
)
ROUTER = SimpleNamespace(per_expert_scale=torch.ones(8))


@pytest.fixture
def experts(monkeypatch):
    monkeypatch.setattr(selfcheck, "_checked", set())
    torch.manual_seed(0)
    made = DenseExperts(CONFIG, ROUTER, Share.of(CONFIG, Ranks())).bfloat16()
    for parameter in made.parameters():
        parameter.data.normal_(std=0.1)
    return made


def test_right_experts_pass_once(experts):
    experts.prepare()
    assert len(selfcheck._checked) == 1
    experts.prepare()  # the next layer of this kind asks nothing


@pytest.mark.parametrize("what", ["one expert", "gate and up swapped", "nan"])
def test_wrong_experts_stop_the_start(experts, monkeypatch, what):
    right = DenseExperts.forward

    def forward(self, x, scores):
        if what == "nan":
            return right(self, x, scores) * float("nan")
        kept = self.gate_up_proj.data.clone()
        if what == "one expert":
            self.gate_up_proj.data[3] *= 1.5
        else:
            self.gate_up_proj.data = kept.roll(CONFIG.moe_intermediate_size, 1)
        y = right(self, x, scores)
        self.gate_up_proj.data = kept
        return y

    monkeypatch.setattr(DenseExperts, "forward", forward)
    with pytest.raises(RuntimeError, match="DenseExperts: our expert kernels are wrong on cpu"):
        experts.prepare()
