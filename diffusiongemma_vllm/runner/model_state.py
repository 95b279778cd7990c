"""The model state of vLLM's V2 runner: what a forward reads, and which requests denoise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.states import RequestState

from diffusiongemma_vllm.inputs import StepInputs
from diffusiongemma_vllm.model.lora import use_tiles
from diffusiongemma_vllm.runner import cpu_batch
from diffusiongemma_vllm.runner.constraint import Constraints
from diffusiongemma_vllm.runner.edits import ThoughtMarks
from diffusiongemma_vllm.runner.processors import custom
from diffusiongemma_vllm.runner.rules import server_rules
from diffusiongemma_vllm.runner.sampler import DiffusionSampler
from diffusiongemma_vllm.state import SlotState


class DiffusionGemmaModelState(ModelState):
    """Owns the slot state and the step's input buffers."""

    num_new_sampled_tokens_per_step = 0  # a canvas is all drafts, there is no bonus token

    def __init__(
        self, vllm_config: Any, model: nn.Module, encoder_cache: Any, device: torch.device
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        if device.type == "cpu":
            cpu_batch.install()
            if vllm_config.lora_config is not None:
                use_tiles(model.lora_manager)
        hidden = self.model_config.hf_text_config.hidden_size
        dtype = self.model_config.dtype
        assert isinstance(dtype, torch.dtype), "vLLM resolves names of dtypes"
        self.config = server_rules(vllm_config)
        self.slots = SlotState(
            self.config, slots=self.max_num_reqs, hidden=hidden, limit=self.max_model_len,
            dtype=dtype, device=device,
        )
        self.inputs = StepInputs(
            tokens=self.max_num_tokens, requests=self.max_num_reqs, hidden=hidden,
            dtype=dtype, device=device,
        )

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        marks = _marks(self.vllm_config.reasoning_config)
        ours = DiffusionSampler(
            self.config, self.slots, self.model, sampler.req_states, marks=marks,
            constrain=Constraints(self.vllm_config, marks),
            logprobs=self.model_config.logprobs_mode == "raw_logprobs",
            processors=custom(sampler.logits_processors),
        )
        return ours, None

    def prepare_inputs_embeds(
        self, scheduled_encoder_inputs: dict[str, list[int]], input_batch: InputBatch,
        req_states: RequestState,
    ) -> None:
        return None

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        count = input_batch.num_reqs
        tokens = input_batch.num_tokens
        soft, denoising = self.inputs.set_rows(
            self.slots, input_batch.idx_mapping[:count],
            input_batch.query_start_loc[: count + 1], input_batch.input_ids[:tokens],
            input_batch.num_tokens_after_padding,
        )
        if input_batch.num_draft_tokens == 0:
            return {}  # no canvas in the batch: leave self-conditioning out
        return {"soft": soft, "denoising": denoising}

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
        return build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=padded,
            num_tokens=tokens,
            query_start_loc_gpu=input_batch.query_start_loc,
            query_start_loc_cpu=torch.from_numpy(input_batch.query_start_loc_np),
            max_query_len=int(input_batch.num_scheduled_tokens.max()),
            seq_lens=input_batch.seq_lens,
            max_seq_len=self.max_model_len,
            block_tables=block_tables,
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            causal=self.inputs.set_modes(self.slots, input_batch.idx_mapping[:count], padded),
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
