"""Gated MLPs: the dense one of every layer, and self-conditioning."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.model_executor.layers.activation import get_act_and_mul_fn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear


class GatedMLP(nn.Module):
    """down(gelu_tanh(gate(x)) * up(x)).   x: [T, H]  ->  [T, H]"""

    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size, [config.intermediate_size] * 2, bias=False,
            quant_config=quant_config, prefix=f"{prefix}.gate_up_proj", return_bias=False,
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size, config.hidden_size, bias=False,
            quant_config=quant_config, prefix=f"{prefix}.down_proj", return_bias=False,
        )
        self.act = get_act_and_mul_fn(config.hidden_activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_up_proj(x)))


class SelfConditioning(GatedMLP):
    """norm(x + mlp(norm(soft))): mixes the last step's belief into the canvas embeddings.

    Source: transformers' ``DiffusionGemmaSelfConditioning``.  Never quantised.
    """

    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__(config, None, prefix)
        self.pre_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, has_weight=False)

    def forward(self, x: Tensor, soft: Tensor) -> Tensor:  # type: ignore[override]
        """x: [T, H] canvas embeddings  soft: [T, H], zero at a canvas's first step  ->  [T, H]"""
        return self.post_norm(x + super().forward(self.pre_norm(soft)))
