"""Attention of one layer, local (sliding window) or global (shared keys and values)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear

from diffusiongemma_kernels.qkv.op import normed_and_turned, turned_into_cache
from diffusiongemma_vllm.model.backend import CanvasAttentionBackend, step_cache
from diffusiongemma_vllm.model.rowwise import rowwise
from diffusiongemma_vllm.model.weights import GLOBAL


class LayerAttention(nn.Module):
    """Projections, norms and rotation around the paged attention kernel.

    A global layer has no v_proj: its value is the key projection before the key norm, loaded into
    both shards of ``qkv_proj``.  Scores are not scaled, the norms of q and k do that.
    The value is normed too, without a weight, and not turned.
    Source: transformers' ``DiffusionGemmaEncoderTextAttention`` and its decoder twin.
    """

    def __init__(
        self, config: Any, index: int, *, cache_config: Any, quant_config: Any, prefix: str
    ) -> None:
        super().__init__()
        layer = config.per_layer_config[index]
        self.kind = config.layer_types[index]
        self.head_dim = layer.head_dim
        self.eps = config.rms_norm_eps
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size, self.head_dim, config.num_attention_heads,
            layer.num_key_value_heads, bias=config.attention_bias, quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj", return_bias=False,
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * self.head_dim, config.hidden_size,
            bias=config.attention_bias, quant_config=quant_config,
            prefix=f"{prefix}.o_proj", return_bias=False,
        )
        self.q_norm = RMSNorm(self.head_dim, eps=self.eps)
        self.k_norm = RMSNorm(self.head_dim, eps=self.eps)
        heads, self.kv_heads = self.qkv_proj.num_heads, self.qkv_proj.num_kv_heads
        self.attn = Attention(
            heads, self.head_dim, 1.0, num_kv_heads=self.kv_heads, cache_config=cache_config,
            quant_config=quant_config,
            per_layer_sliding_window=None if self.kind == GLOBAL else config.sliding_window,
            prefix=f"{prefix}.attn", attn_backend=CanvasAttentionBackend,
        )

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x: [T, H]  angles: [T, 2, D / 2]  ->  [T, Hq * D], what ``o_proj`` reads"""
        if x.is_cuda:
            # Without a key and a value vLLM's layer writes nothing: they are in the cache.
            return self.attn(self.project_into_cache(x, angles), None, None)
        return self.attn(*rowwise(self.project, x, angles))

    def project_into_cache(self, x: Tensor, angles: Tensor) -> Tensor:
        """As ``project`` on a GPU, where k and v are written to their slots alone.  -> q"""
        qkv = self.qkv_proj(x)
        kept = step_cache(self.attn)
        if kept is None:  # memory profiling, which attends to nothing
            return qkv.new_zeros(len(x), self.attn.num_heads * self.head_dim)
        return turned_into_cache(
            qkv, angles, self.q_norm.weight, self.k_norm.weight, *kept, self.eps
        )

    def project(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """On a CPU.   x: [T, H]  angles: [T, 2, D / 2]  ->  q [T, Hq * D], k and v [T, Hk * D]"""
        return normed_and_turned(
            self.qkv_proj(x), angles, self.q_norm.weight, self.k_norm.weight, self.kv_heads,
            self.eps,
        )
