"""Our attention as a vLLM backend: paged keys, every run of rows causal or a whole canvas.

The canvas mask rule is the kernel's (``diffusiongemma_kernels.attention``): a row of a prompt or of
a commit sees itself and what came before, within the window; every row of a canvas sees the same
last ``window - 1`` tokens before the canvas and all of the canvas.
Source: transformers' ``create_diffusion_decoder_attention_mask``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm import envs
from vllm.model_executor.layers.attention.attention import get_attention_context
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)

from diffusiongemma_kernels.attention.op import paged_attention
from diffusiongemma_kernels.kv_write.op import kv_write
from diffusiongemma_kernels.paged import Batch, PagedKV

NAME = "CUSTOM"


@dataclass
class CanvasMetadata(AttentionMetadata):
    batch: Batch


class CanvasMetadataBuilder(AttentionMetadataBuilder[CanvasMetadata]):
    _cudagraph_support = AttentionCGSupport.UNIFORM_BATCH

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
        images: Tensor | None = None,
    ) -> CanvasMetadata:
        """images: [T, 2] i32, as ``Batch.images``"""
        common = common_attn_metadata
        canvas, tables = common.causal, common.block_table_tensor
        assert isinstance(canvas, Tensor), "the model state says which rows are a canvas's"
        return CanvasMetadata(
            Batch(
                query_start_loc=common.query_start_loc,
                seq_lens=common.seq_lens,
                block_table=tables,
                canvas=canvas,
                max_query_len=common.max_query_len,
                max_seq_len=common.max_seq_len,
                parts=canvas.shape[0] // tables.shape[0],
                images=images,
            )
        )


class CanvasAttentionBackend(AttentionBackend):
    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [
        torch.float16, torch.bfloat16, torch.float32,
    ]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = [
        "auto", "float16", "bfloat16", "fp8", "fp8_e4m3",
    ]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @staticmethod
    def get_name() -> str:
        return NAME

    @staticmethod
    def get_impl_cls() -> type[CanvasAttentionImpl]:
        return CanvasAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[CanvasMetadataBuilder]:
        return CanvasMetadataBuilder

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True


class CanvasAttentionImpl(AttentionImpl):
    def __init__(  # noqa: PLR0913  vLLM's signature
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        assert alibi_slopes is None and not logits_soft_cap, "not in this architecture"
        assert attn_type == AttentionType.DECODER and kv_sharing_target_layer_name is None
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.num_kv_heads = num_kv_heads or num_heads
        self.window = sliding_window or 0
        self.kv_cache_dtype = kv_cache_dtype

    def pages(self, layer: Any, kv_cache: Tensor) -> PagedKV:
        """[B, Hk, block, 2 D] -> keys and values [B, block, Hk, D] with their scales"""
        if self.kv_cache_dtype.startswith("fp8"):
            kv_cache = kv_cache.view(torch.float8_e4m3fn)
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        return PagedKV(keys, values, layer._k_scale_float, layer._v_scale_float)

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """On a CPU; on a GPU keys and values are in the cache before vLLM's layer is called."""
        if kv_cache.numel() == 0:
            return
        kv_write(key, value, self.pages(layer, kv_cache), slot_mapping)

    def forward(  # noqa: PLR0913  vLLM's signature
        self,
        layer: Any,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        kv_cache: Tensor,
        attn_metadata: CanvasMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        assert output_scale is None and output_block_scale is None
        if attn_metadata is None:  # memory profiling
            return output.zero_()
        return paged_attention(
            query, self.pages(layer, kv_cache), attn_metadata.batch, output,
            window=self.window, scale=self.scale, batch_invariant=envs.VLLM_BATCH_INVARIANT,
        )


def step_cache(layer: Any) -> tuple[PagedKV, Tensor] | None:
    """The pages of vLLM's attention layer, and the slots [S] of a step's rows.

    Found as vLLM's ``unified_kv_cache_update`` finds them; None where memory is profiled, before
    there is a cache.
    """
    _, _, kv_cache, slot_mapping = get_attention_context(layer.layer_name)
    if slot_mapping is None or kv_cache.numel() == 0:
        return None
    return layer.impl.pages(layer, kv_cache), slot_mapping
