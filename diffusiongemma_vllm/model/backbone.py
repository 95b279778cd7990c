"""The Gemma-4 stack, one set of weights run in two modes row by row.

A row is an encoder row (prompt or committed text: raw embedding, causal) or a denoise row (canvas:
embedding mixed with the last step's belief, sees its whole canvas).  Both kinds share a batch.
Source: transformers' ``DiffusionGemmaEncoderTextModel`` and ``DiffusionGemmaDecoderModel``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.layernorm import RMSNorm

from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_kernels.moe_gemm.types import Arranged, Unsummed
from diffusiongemma_kernels.norms.op import enter, leave
from diffusiongemma_kernels.norms.types import Entry, Exit
from diffusiongemma_vllm.model.attention import LayerAttention
from diffusiongemma_vllm.model.beside import Beside
from diffusiongemma_vllm.model.experts import Nvfp4Experts, OurExperts, build_experts
from diffusiongemma_vllm.model.mlp import GatedMLP, SelfConditioning
from diffusiongemma_vllm.model.moe import Router
from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.model.rope import Rope
from diffusiongemma_vllm.model.rowwise import rowwise
from diffusiongemma_vllm.model.vocabulary import Vocabulary


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
        self.eps = config.rms_norm_eps
        self.ranks = Ranks.here()
        self.beside = Beside(self.ranks)

    def after_attention(
        self, x: Tensor, mixed: Tensor, denoising: Tensor | None, following: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x: [T, H] residual  mixed: [T, Hq * D]  denoising: [T] bool  ->  [T, H] and its norm

        following: [H], the weight of the norm that reads this layer.
        """
        before = Entry(
            self.post_attention_layernorm.weight, self.pre_feedforward_layernorm.weight,
            self.pre_feedforward_layernorm_2.weight, self.router.scale,
        )
        behind = Exit(
            self.post_feedforward_layernorm_1.weight, self.post_feedforward_layernorm_2.weight,
            self.post_feedforward_layernorm.weight, following,
        )
        lane = self.experts.lane() if isinstance(self.experts, Nvfp4Experts) else 0
        x, for_mlp, for_experts, for_router = enter(
            x, self.self_attn.o_proj(mixed), before, self.eps, lane=lane
        )
        read = Arranged(for_experts, lane) if lane else for_experts
        scores = self.router(for_router)  # first: behind the MLP it waits for processors
        experts, dense = self.beside(
            lambda: self.all_experts(read, scores), lambda: self.mlp(for_mlp)
        )
        return leave(x, dense, experts, behind, self.scalar(denoising), self.eps)

    def all_experts(self, x: Tensor | Arranged, scores: Tensor) -> Tensor | Unsummed:
        """x: [T, H]  scores: [T, E]  ->  [T, H], of the experts of all ranks"""
        found = self.experts(x, scores)
        if self.ranks.count > 1 and isinstance(self.experts, OurExperts):
            return self.ranks.sum(summed(found))
        return found

    def scalar(self, denoising: Tensor | None) -> Tensor:
        if denoising is None or not self.scalars_differ:
            return self.encoder_scalar
        return torch.where(denoising[:, None], self.decoder_scalar, self.encoder_scalar)

    def forward(
        self, x: Tensor, normed: Tensor, angles: Tensor, denoising: Tensor | None, following: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x: [T, H]  normed: [T, H], x after ``input_layernorm``  ->  as ``after_attention``"""
        mixed = self.self_attn(normed, angles)
        finish = partial(self.after_attention, following=following)
        x, normed = rowwise(finish, x, mixed, denoising)
        return x, normed


class Backbone(nn.Module):
    """Embedding, self-conditioning, layers and final norm."""

    def __init__(
        self, config: Any, *, cache_config: Any, quant_config: Any, prefix: str
    ) -> None:
        super().__init__()
        self.embed_tokens = Vocabulary(
            config.vocab_size, config.hidden_size, f"{prefix}.embed_tokens"
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
        heads = {kind: config.per_layer_config[i].head_dim for i, kind in enumerate(self.kinds)}
        self.rope = Rope(
            {kind: (dict(config.rope_parameters[kind]), dim) for kind, dim in heads.items()}
        )

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
        angles = self.rope(positions, x.dtype)
        layers = cast(list[Layer], list(self.layers))
        norms = [*(layer.input_layernorm for layer in layers), self.norm]
        normed = rowwise(norms[0], x)
        for kind, layer, following in zip(self.kinds, layers, norms[1:], strict=True):
            x, normed = layer(x, normed, angles[kind], denoising, following.weight)
        return normed
