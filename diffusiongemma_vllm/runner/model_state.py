"""The model state of vLLM's V2 runner: what a forward reads, and which requests denoise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.interface import ModelSpecificAttnMetadata, ModelState
from vllm.v1.worker.gpu.states import RequestState

from diffusiongemma_kernels.slots import Rows
from diffusiongemma_vllm.inputs import PARTS, StepInputs
from diffusiongemma_vllm.model.lora import use_tiles
from diffusiongemma_vllm.runner import ahead, cpu_batch, cpu_wait, graphs, spans
from diffusiongemma_vllm.runner.belief import prove
from diffusiongemma_vllm.runner.constraint import Constraints
from diffusiongemma_vllm.runner.edits import ThoughtMarks
from diffusiongemma_vllm.runner.gpu_step import GpuStep
from diffusiongemma_vllm.runner.processors import custom
from diffusiongemma_vllm.runner.rules import server_rules
from diffusiongemma_vllm.runner.sampler import DiffusionSampler
from diffusiongemma_vllm.runner.special import Serving
from diffusiongemma_vllm.state import SlotState


class SeenImages(ModelSpecificAttnMetadata):
    """Hands the pictures of a step to our attention.  images: as ``Batch.images``"""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def get_extra_attn_kwargs(self, attn_metadata_builder: Any, num_reqs: int) -> dict[str, Any]:
        return {"images": self.images}


class DiffusionGemmaModelState(ModelState):
    """Owns the slot state and the step's input buffers."""

    num_new_sampled_tokens_per_step = 0  # a canvas is all drafts, there is no bonus token

    def __init__(
        self, vllm_config: Any, model: nn.Module, encoder_cache: Any, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        graphs.install()
        if device.type == "cuda":
            ahead.install()
        if device.type == "cpu":
            cpu_batch.install()
            cpu_wait.install()
            if vllm_config.lora_config is not None:
                use_tiles(model.lora_manager)
        hidden = self.model_config.hf_text_config.hidden_size
        dtype = self.model_config.dtype
        assert isinstance(dtype, torch.dtype), "vLLM resolves names of dtypes"
        self.config = server_rules(vllm_config)
        self.expert_load: Any = model.expert_load
        self.slots = SlotState(
            self.config, slots=self.max_num_reqs, hidden=hidden, limit=self.max_model_len,
            dtype=dtype, device=device,
        )
        self.inputs = StepInputs(
            tokens=self.max_num_tokens, requests=self.max_num_reqs, hidden=hidden,
            dtype=dtype, device=device,
        )
        self.gpu = GpuStep(self.slots, self.inputs) if device.type == "cuda" else None

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        prove(self.model)
        marks = _marks(self.vllm_config.reasoning_config)
        serving = Serving(
            marks, Constraints(self.vllm_config, marks), custom(sampler.logits_processors)
        )
        ours = DiffusionSampler(
            self.config, self.slots, self.model, sampler.req_states, serving=serving, gpu=self.gpu,
            logprobs=self.model_config.logprobs_mode == "raw_logprobs",
        )
        return ours, None

    def prepare_inputs_embeds(
        self, scheduled_encoder_inputs: dict[str, list[int]], input_batch: InputBatch,
        req_states: RequestState,
    ) -> None:
        if scheduled_encoder_inputs:
            self.execute_mm_encoder(scheduled_encoder_inputs)

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        rows = _rows(input_batch)
        ids = input_batch.input_ids[: input_batch.num_tokens]
        padded = input_batch.num_tokens_after_padding
        if self.gpu is not None:
            soft, denoising = self.gpu.set_rows(rows, ids, padded)
        else:
            soft, denoising = self.inputs.set_rows(self.slots, rows.slots, rows.starts, ids, padded)
        pictures = _pictures(self, input_batch) if self.supports_mm_inputs else {}
        if input_batch.num_draft_tokens == 0:
            return pictures  # no canvas in the batch: leave self-conditioning out
        return pictures | {"soft": soft, "denoising": denoising}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {
            "soft": self.inputs.soft[:num_tokens],
            "denoising": self.inputs.denoising[:num_tokens],
        }

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[Any]],
        kv_cache_config: Any,
        for_capture: bool = False,
        ubatch_idx: int = 0,
    ) -> dict[str, Any]:
        full = cudagraph_mode == CUDAGraphMode.FULL
        count = input_batch.num_reqs
        padded = input_batch.num_reqs_after_padding if full else count
        tokens = input_batch.num_tokens_after_padding if full else input_batch.num_tokens
        if not full and not for_capture:
            self.expert_load.prepare(tokens)
        rows = _rows(input_batch)
        if self.gpu is not None:
            parts = self.gpu.set_parts(rows, padded)
        else:
            parts = self.inputs.set_parts(self.slots, *rows, padded)
        images = None
        if self.supports_mm_inputs and not for_capture:
            images = spans.rows(input_batch, self.encoder_cache.mm_features, self.device)
        return build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=PARTS * padded,
            num_tokens=tokens,
            query_start_loc_gpu=parts.starts,
            query_start_loc_cpu=torch.from_numpy(input_batch.query_start_loc_np),
            max_query_len=int(input_batch.num_scheduled_tokens.max()),
            seq_lens=parts.ends,
            max_seq_len=self.max_model_len,
            block_tables=block_tables,
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            causal=parts.canvas,
            model_specific_attn_metadata=None if images is None else SeenImages(images),
        )


def _pictures(state: DiffusionGemmaModelState, batch: InputBatch) -> dict[str, Any]:
    """Soft tokens of the pictures that a step reads, and their rows."""
    if not spans.pictured(batch, state.encoder_cache.mm_features):
        return {}
    found, where = state.gather_mm_embeddings(batch)
    if not found:
        return {}
    rows = where.nonzero().flatten().to(state.device, non_blocking=True)
    return {"features": torch.cat(found).to(state.dtype), "pictured": rows}


def _rows(batch: InputBatch) -> Rows:
    count = batch.num_reqs
    return Rows(
        batch.idx_mapping[:count], batch.query_start_loc[: count + 1], batch.seq_lens[:count]
    )


def _marks(config: Any) -> ThoughtMarks | None:
    """config: vLLM's ``ReasoningConfig``, which knows the tokens once it is enabled."""
    if config is None or not config.enabled:
        return None
    return ThoughtMarks(
        opens=config.reasoning_start_token_ids[0],
        closes=config.natural_reasoning_end_token_ids[0],
        ends=tuple(config.reasoning_end_token_ids),
    )
