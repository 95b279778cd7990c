"""Several GPUs: how a model may be divided over them, and what is refused, with the reason."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from diffusiongemma_kernels.formats.nvfp4 import BLOCK
from diffusiongemma_kernels.row_stats.parts import GROUP, MOST_TOKENS
from diffusiongemma_vllm.nvfp4 import NAME

PADDING = 64  # vLLM's, of the vocabulary


def check(vllm_config: Any) -> None:
    """Raises ValueError for an option that asks for a division that does not exist here."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    ranks = parallel.tensor_parallel_size
    replicas = "serve one replica a GPU with --data-parallel-size, or use --tensor-parallel-size"
    reasons = {
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1
        and f"a canvas goes through all layers at every step; {replicas}",
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1
        and f"a canvas reads its whole context; {replicas}",
        "decode_context_parallel_size": parallel.decode_context_parallel_size > 1
        and f"a canvas reads its whole context; {replicas}",
        "enable_expert_parallel": parallel.enable_expert_parallel
        and parallel.data_parallel_size > 1
        and "experts are divided over the GPUs of one replica, not over replicas; drop "
        "--enable-expert-parallel, or use --tensor-parallel-size in place of --data-parallel-size",
        "enable_eplb": parallel.enable_eplb
        and "experts stay where they were loaded; drop --enable-eplb",
        "expert_placement_strategy": parallel.expert_placement_strategy != "linear"
        and "every GPU holds neighbouring experts; drop --expert-placement-strategy",
        "enable_batch_sharded_sampling": bool(parallel.enable_batch_sharded_sampling)
        and "canvases are sampled from a vocabulary that is divided; drop "
        "--enable-batch-sharded-sampling",
        "enable_dbo": parallel.enable_dbo
        and "a batch of canvases is not cut in two; drop --enable-dbo",
        "enable_lora and tensor_parallel_size": ranks > 1 and vllm_config.lora_config is not None
        and "adapters are not divided; drop one of them",
        "this checkpoint and tensor_parallel_size": ranks > 1
        and model.quantization not in (None, NAME)
        and "only BF16 and NVIDIA's NVFP4 layout are divided; drop --tensor-parallel-size",
    }
    for option, reason in reasons.items():
        if reason:
            raise ValueError(f"DiffusionGemma cannot be served with {option}: {reason}")
    wrong = uneven(
        model.hf_text_config, ranks, by_experts=parallel.enable_expert_parallel,
        tokens=GROUP if current_platform.is_cuda() else 1,
    )
    if wrong:
        raise ValueError(
            f"--tensor-parallel-size {ranks} does not divide the model: {'; '.join(wrong)}"
        )


def uneven(config: Any, ranks: int, *, by_experts: bool, tokens: int) -> list[str]:
    """What of a text config cannot be divided over so many ranks, in words; empty if all can.

    tokens: what a rank holds of the vocabulary is a multiple of so many.
    """
    if ranks == 1:
        return []
    wrong = []
    heads, width = config.num_attention_heads, config.intermediate_size
    if heads % ranks:
        wrong.append(f"{heads} attention heads need a divisor of {heads}")
    for count in sorted({layer.num_key_value_heads for layer in config.per_layer_config}):
        # Where there are fewer than ranks, several ranks hold the same.
        if count % ranks and ranks % count:
            wrong.append(f"{count} key-value heads need a divisor or a multiple of {count}")
    if width % ranks:
        wrong.append(f"intermediate_size {width} needs a divisor of {width}")
    experts, columns = config.num_experts, config.moe_intermediate_size
    if by_experts and ranks > experts:
        wrong.append(f"{experts} experts need at most {experts}")
    if not by_experts and (columns % BLOCK or ranks > columns // BLOCK):
        wrong.append(
            f"moe_intermediate_size {columns} is divided in blocks of {BLOCK}; use fewer GPUs or "
            "--enable-expert-parallel"
        )
    padded = -(-config.vocab_size // PADDING) * PADDING
    each = padded // ranks
    if padded % ranks or each % tokens or (ranks - 1) * each >= config.vocab_size:
        wrong.append(
            f"vocab_size {config.vocab_size}, padded to {padded}, is divided into equal parts of a "
            f"multiple of {tokens}, of which none may be empty"
        )
    if config.vocab_size > MOST_TOKENS:
        wrong.append(f"vocab_size must be at most {MOST_TOKENS}")
    return wrong
