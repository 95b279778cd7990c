"""The Gemma-4 stack, one set of weights run in two modes row by row.

A row is an encoder row (prompt or committed text: raw embedding, causal) or a denoise row (canvas:
embedding mixed with the last step's belief, sees its whole canvas).  Both kinds share a batch.
Source: transformers' ``DiffusionGemmaEncoderTextModel`` and ``DiffusionGemmaDecoderModel``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from diffusiongemma_vllm.model.attention import LayerAttention
from diffusiongemma_vllm.model.experts import build_experts
from diffusiongemma_vllm.model.mlp import GatedMLP, SelfConditioning
from diffusiongemma_vllm.model.moe import Router
from diffusiongemma_vllm.model.rope import Rope
from diffusiongemma_vllm.model.rowwise import rowwise


class Layer(nn.Module):
    """Attention, then a dense MLP and a mixture of experts side by side, sandwiched in norms.

    ``encoder_scalar`` and ``decoder_scalar`` [1] scale the layer's output in the two modes; a
    checkpoint holds both.
    """

    encoder_scalar: Tensor
    decoder_scalar: Tensor

    def __init__(
        self, config: Any, index: int, *, cache_config: Any, quant_config: Any, prefix: str
    ) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

        self.self_attn = LayerAttention(
            config, index, cache_config=cache_config, quant_config=quant_config,
            prefix=f"{prefix}.self_attn",
        )
        self.mlp = GatedMLP(config, quant_config, f"{prefix}.mlp")
        self.router = Router(config, f"{prefix}.router")
        self.experts = build_experts(config, self.router, quant_config, f"{prefix}.experts")
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.pre_feedforward_layernorm_2 = norm()
        self.post_feedforward_layernorm = norm()
        self.post_feedforward_layernorm_1 = norm()
        self.post_feedforward_layernorm_2 = norm()
        self.register_buffer("encoder_scalar", torch.ones(1))
        self.register_buffer("decoder_scalar", torch.ones(1))
        self.scalars_differ = False

    def before_attention(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.project(self.input_layernorm(x), angles)

    def after_attention(self, x: Tensor, mixed: Tensor, denoising: Tensor | None) -> Tensor:
        """x: [T, H] residual  mixed: [T, Hq * D]  denoising: [T] bool  ->  [T, H]"""
        x = x + self.post_attention_layernorm(self.self_attn.o_proj(mixed))
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        experts = self.experts(self.pre_feedforward_layernorm_2(x), self.router(x))
        both = dense + self.post_feedforward_layernorm_2(experts)
        x = x + self.post_feedforward_layernorm(both)
        return x * self.scalar(denoising)

    def scalar(self, denoising: Tensor | None) -> Tensor:
        if denoising is None or not self.scalars_differ:
            return self.encoder_scalar
        return torch.where(denoising[:, None], self.decoder_scalar, self.encoder_scalar)

    def forward(self, x: Tensor, angles: Tensor, denoising: Tensor | None) -> Tensor:
        q, k, v = rowwise(self.before_attention, x, angles)
        return rowwise(self.after_attention, x, self.self_attn.attn(q, k, v), denoising)


class Backbone(nn.Module):
    """Embedding, self-conditioning, layers and final norm."""

    def __init__(
        self, config: Any, *, cache_config: Any, quant_config: Any, prefix: str
    ) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=f"{prefix}.embed_tokens"
        )
        self.self_conditioning = SelfConditioning(config, f"{prefix}.self_conditioning")
        self.layers = nn.ModuleList(
            Layer(
                config, index, cache_config=cache_config, quant_config=quant_config,
                prefix=f"{prefix}.layers.{index}",
            )
            for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        dtype = torch.get_default_dtype()  # vLLM sets it to the model's while it builds
        self.embed_scale = torch.tensor(config.hidden_size**0.5, dtype=dtype, device="cpu").item()
        self.kinds = list(config.layer_types)
        self.rope = nn.ModuleDict()
        for index, kind in enumerate(config.layer_types):
            if kind not in self.rope:
                head_dim = config.per_layer_config[index].head_dim
                self.rope[kind] = Rope(dict(config.rope_parameters[kind]), head_dim)

    def embed(self, input_ids: Tensor) -> Tensor:
        """[T] i64  ->  [T, H], scaled by sqrt(H) rounded to the weights' dtype"""
        return self.embed_tokens(input_ids) * self.embed_scale

    def condition(self, x: Tensor, soft: Tensor, denoising: Tensor) -> Tensor:
        """Self-conditioning on the denoise rows alone."""
        mixed = rowwise(self.self_conditioning, x, soft)
        return torch.where(denoising[:, None], mixed, x)

    def forward(
        self, x: Tensor, positions: Tensor, soft: Tensor | None, denoising: Tensor | None
    ) -> Tensor:
        """x: [T, H] embeddings  positions: [T] i64  soft: [T, H]  denoising: [T] bool  ->  [T, H]

        soft and denoising are None in a batch without a canvas.
        """
        if soft is not None and denoising is not None:
            x = self.condition(x, soft, denoising)
        angles = {kind: rope(positions, x.dtype) for kind, rope in self.rope.items()}
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            x = layer(x, angles[kind], denoising)
        return rowwise(self.norm, x)
