"""What an engine that serves DiffusionGemma must be configured like: kept, filled in or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm import envs
from vllm.config.compilation import CompilationMode, CUDAGraphMode
from vllm.config.diffusion import DiffusionConfig
from vllm.logger import init_logger
from vllm.lora.utils import is_in_target_modules
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from diffusiongemma_vllm import compat
from diffusiongemma_vllm.asked import asked as user_arguments
from diffusiongemma_vllm.model.weights import PACKED
from diffusiongemma_vllm.runner import several
from diffusiongemma_vllm.runner.adapters import adaptable, layer_of
from diffusiongemma_vllm.runner.back_ends import ENFORCING
from diffusiongemma_vllm.runner.pictures import served_options
from diffusiongemma_vllm.runner.rules import server_rules

logger = init_logger("vllm.diffusiongemma")

DEFAULT_REQUESTS = 32
LAUNCHES_SHOW = 16  # canvases of a step that takes the GPU no longer than the host without a graph
PROMPT_TOKENS = 2048  # of a step's token budget, beside a canvas for every request
CPU_PAGES = 2 << 30  # bytes of KV cache on a CPU; vLLM's default is nearly all of the memory
READS_FP8 = 89  # compute capability, times ten
SCHEDULER = "diffusiongemma_vllm.runner.async_scheduler.scheduler"


def graph_sizes(canvas: int, most: int) -> list[int]:
    """Rows to capture CUDA graphs for: every count of canvases up to 16, then in growing strides.

    most: canvases' worth of rows that a step may hold.
    """
    counts = [
        *range(1, 17), *range(18, 33, 2), *range(36, 65, 4), *range(72, 129, 8),
        *range(144, 1025, 16),
    ]
    return [canvas * n for n in sorted({min(n, most) for n in counts})]


class DiffusionGemmaConfig:
    """The entry for our architecture in vLLM's map of per-architecture config hooks."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """On CPU FP32 unless the user says otherwise: products in BF16 take ten times as long."""
        if current_platform.is_cpu() and "dtype" not in user_arguments():
            model_config.dtype = torch.float32

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Raises ValueError for a value of the user's that cannot be kept, with the reason."""
        asked = user_arguments()
        _refuse(vllm_config, asked)
        several.check(vllm_config)
        canvas = _canvas(vllm_config)
        server_rules(vllm_config)  # the sampler's settings, before the weights are loaded
        _attention(vllm_config)
        _cache(vllm_config, asked)
        _pages(vllm_config.cache_config, asked)
        _budget(vllm_config, asked, canvas)
        _graphs(vllm_config, asked, canvas)
        _adapters(vllm_config)
        _pictures(vllm_config.model_config)
        if "prefix_cache_retention_interval" not in asked:
            # 0 would keep prompts alone, and no committed canvas for the next turn.
            vllm_config.cache_config.prefix_cache_retention_interval = None
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        # A checkpoint's 256 is the length of an example, not a limit.
        vllm_config.model_config.override_generation_config.setdefault("max_new_tokens", None)


def _refuse(vllm_config: Any, asked: dict[str, Any]) -> None:
    model = vllm_config.model_config
    reasons = {
        "speculative_config": vllm_config.speculative_config is not None
        and "a canvas is drafted and checked by the model itself; drop --speculative-config",
        "VLLM_COMPUTE_NANS_IN_LOGITS": envs.VLLM_COMPUTE_NANS_IN_LOGITS
        and "logits are projected in parts that are not kept; unset it and "
        "VLLM_RAISE_ON_LOGIT_NANS",
        "scheduler_cls": "scheduler_cls" in asked
        and "canvases need our own scheduler; drop --scheduler-cls",
        "watermark_config": vllm_config.watermark_config is not None
        and "watermarks are drawn token by token; drop --watermark-config",
        "logprobs_mode": model.logprobs_mode.startswith("processed")
        and "log-probabilities are the model's own; use raw_logprobs or raw_logits",
        "runner": model.runner_type != "generate"
        and "the model only generates text; drop --runner and --convert",
    }
    for option, reason in (reasons | _back_ends(vllm_config.structured_outputs_config)).items():
        if reason:
            raise ValueError(f"DiffusionGemma cannot be served with {option}: {reason}")
    if compat.rust_frontend():
        raise ValueError(
            "VLLM_USE_RUST_FRONTEND bypasses the plugin's request checks and parsers; unset it to "
            "serve DiffusionGemma"
        )


def _back_ends(config: Any) -> dict[str, str]:
    """Those for structured outputs that would let invalid text through, or do not load."""
    name = config.backend
    if name in ("auto", *ENFORCING):
        return {}
    why = {
        "outlines": "leaves numbers' bounds and more of a schema out, so text would not be valid",
        "lm-format-enforcer": "does not load with vLLM 0.32",
    }
    return {f"structured_outputs_config.backend {name}":
            f"it {why[name]}; use auto, {' or '.join(ENFORCING)}"}


def _canvas(vllm_config: Any) -> int:
    length = vllm_config.model_config.hf_config.canvas_length
    if vllm_config.diffusion_config is None:
        vllm_config.diffusion_config = DiffusionConfig(canvas_length=length)
    if vllm_config.diffusion_config.canvas_length is None:
        vllm_config.diffusion_config.canvas_length = length
    canvas = vllm_config.diffusion_config.canvas_length
    if canvas > length:
        raise ValueError(
            f"--diffusion-config canvas_length must be 1..{length}, the checkpoint's, got {canvas}"
        )
    steps = vllm_config.diffusion_config.max_denoising_steps
    if steps is not None and steps < 1:
        raise ValueError(f"--diffusion-config max_denoising_steps must be 1 or more, got {steps}")
    return canvas


def _attention(vllm_config: Any) -> None:
    attention = vllm_config.attention_config
    if attention.backend not in (None, AttentionBackendEnum.TRITON_ATTN):
        raise ValueError(
            f"--attention-backend {attention.backend.name} cannot mix causal and canvas requests "
            "by the reference's window rule; use TRITON_ATTN, or drop the option"
        )
    attention.backend = AttentionBackendEnum.TRITON_ATTN
    attention.use_non_causal = True
    logger.info_once("DiffusionGemma runs the plugin's own attention (TRITON_ATTN selects it too).")


def _cache(vllm_config: Any, asked: dict[str, Any]) -> None:
    """Keys and values of the model's own dtype, or in FP8 where the GPU can read it.

    NVIDIA's checkpoint asks for FP8, which Ampere gives up for the model's own.
    """
    cache = vllm_config.cache_config
    own = str(vllm_config.model_config.dtype).removeprefix("torch.")
    if cache.cache_dtype not in ("auto", own, "fp8", "fp8_e4m3"):
        raise ValueError(
            f"--kv-cache-dtype {cache.cache_dtype} cannot hold the keys and values of a model in "
            f"{own}: use auto, {own} or fp8"
        )
    old = current_platform.is_cuda() and not current_platform.has_device_capability(READS_FP8)
    if not cache.cache_dtype.startswith("fp8") or not old:
        return
    if "kv_cache_dtype" in asked or own == "float32":
        raise ValueError(
            "an FP8 KV cache needs a GPU of compute capability 8.9 or newer: use "
            "--kv-cache-dtype auto, and --dtype bfloat16 or float16"
        )
    cache.cache_dtype = own
    logger.info("The KV cache is in %s: this GPU cannot read the checkpoint's FP8.", own)


def _pages(cache: Any, asked: dict[str, Any]) -> None:
    """On a CPU, whose memory others use too, vLLM would not start where 8 % of it are taken."""
    chosen = bool({"gpu_memory_utilization", "kv_cache_memory_bytes"} & asked.keys())
    chosen |= envs.is_set("VLLM_CPU_KVCACHE_SPACE")  # which vLLM puts above the others
    if current_platform.is_cpu() and not chosen and cache.kv_cache_memory_bytes is None:
        cache.kv_cache_memory_bytes = CPU_PAGES
        logger.info(
            "The KV cache takes %d GiB of this CPU's memory; --kv-cache-memory-bytes sets it.",
            CPU_PAGES >> 30,
        )


def _budget(vllm_config: Any, asked: dict[str, Any], canvas: int) -> None:
    """A step holds a canvas for every request, so that none is ever cut."""
    scheduler = vllm_config.scheduler_config
    if 0 < scheduler.long_prefill_token_threshold < canvas:
        raise ValueError(
            f"--long-prefill-token-threshold would cut canvases of {canvas} tokens: it must be 0 "
            f"or at least {canvas}, got {scheduler.long_prefill_token_threshold}"
        )
    if "max_num_seqs" not in asked:
        scheduler.max_num_seqs = min(scheduler.max_num_seqs, DEFAULT_REQUESTS)
    if "max_num_batched_tokens" in asked:
        fitting = scheduler.max_num_batched_tokens // canvas
        if fitting < (scheduler.max_num_seqs if "max_num_seqs" in asked else 1):
            need = canvas * (scheduler.max_num_seqs if "max_num_seqs" in asked else 1)
            raise ValueError(
                f"--max-num-batched-tokens must be at least {need} to hold a canvas of {canvas} "
                f"tokens for every one of --max-num-seqs requests, got "
                f"{scheduler.max_num_batched_tokens}"
            )
        scheduler.max_num_seqs = min(scheduler.max_num_seqs, fitting)
    else:
        need = canvas * scheduler.max_num_seqs + PROMPT_TOKENS
        scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, need)
    scheduler.max_num_encoder_input_tokens = scheduler.max_num_batched_tokens
    scheduler.encoder_cache_size = scheduler.max_num_batched_tokens


def _graphs(vllm_config: Any, asked: dict[str, Any], canvas: int) -> None:
    """CUDA graphs of whole canvases; nothing is compiled, the kernels are written by hand."""
    compilation = vllm_config.compilation_config
    chosen = asked.get("compilation_config") or {}
    if chosen.get("mode") not in (None, CompilationMode.NONE, 0, "NONE"):
        raise ValueError(
            f"--compilation-config mode {chosen['mode']!r}: there is nothing to compile in "
            "DiffusionGemma; drop the option or use mode 0"
        )
    compilation.mode = CompilationMode.NONE
    if not current_platform.is_cuda() or vllm_config.model_config.enforce_eager:
        return
    mode = chosen.get("cudagraph_mode")
    if mode is None:
        compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
    elif str(mode) not in ("NONE", "FULL_DECODE_ONLY", "CUDAGraphMode.NONE", "0"):
        raise ValueError(
            f"--compilation-config cudagraph_mode must be NONE or FULL_DECODE_ONLY, got {mode}"
        )
    sizes = chosen.get("cudagraph_capture_sizes")
    if sizes and any(size % canvas for size in sizes):
        raise ValueError(
            f"--compilation-config cudagraph_capture_sizes must be multiples of the canvas, "
            f"{canvas} tokens, got {sizes}"
        )
    if not sizes:
        limit = chosen.get("max_cudagraph_capture_size") or canvas * 1024
        scheduler = vllm_config.scheduler_config
        # Prompts, and text to commit before a request's next canvas, take more rows than canvases
        # do.  A step of many rows hides its launches anyway.
        most = max(scheduler.max_num_seqs, LAUNCHES_SHOW)
        most = min(most, scheduler.max_num_batched_tokens // canvas)
        sizes = [size for size in graph_sizes(canvas, most) if size <= limit]
    compilation.cudagraph_capture_sizes = sizes
    compilation.max_cudagraph_capture_size = max(sizes, default=0)


def _pictures(model_config: Any) -> None:
    """How pictures are shown.  Our attention knows which rows belong to one, vLLM's need not."""
    pictures = model_config.multimodal_config
    if pictures is None:
        return
    reasons = {
        "enable_mm_embeds": pictures.enable_mm_embeds
        and "pictures are encoded here; drop --enable-mm-embeds",
        "media_io_kwargs": bool(pictures.media_io_kwargs)
        and "files are read by the plugin; drop --media-io-kwargs, see --mm-processor-kwargs",
        "VLLM_MEDIA_CONNECTOR": envs.VLLM_MEDIA_CONNECTOR != "http"
        and "files are loaded by the plugin's own connector; unset it",
        "video_pruning_rate": bool(pictures.video_pruning_rate)
        and "every soft token is shown; drop --video-pruning-rate",
    }
    for option, reason in reasons.items():
        if reason:
            raise ValueError(f"DiffusionGemma cannot be served with {option}: {reason}")
    served_options(model_config)
    # vLLM would keep a whole video in one step, and its own attention backends aside.
    arch = model_config.model_arch_config
    model_config.model_arch_config = replace(arch, is_mm_prefix_lm=False)
    vars(model_config).pop("is_mm_prefix_lm", None)  # vLLM has asked before, and keeps the answer


def _adapters(vllm_config: Any) -> None:
    """LoRA wraps attention and dense MLPs, or what the user wants of them, and nothing else."""
    lora = vllm_config.lora_config
    if lora is None:
        return
    for option in ("enable_tower_connector_lora", "enable_mixed_moe_lora_format",
                   "enable_moe_shared_loras", "max_lora_cls_labels"):
        if getattr(lora, option):
            raise ValueError(
                f"DiffusionGemma cannot be served with {option}: only attention and dense MLPs can "
                f"be adapted; drop --{option.replace('_', '-')}"
            )
    config = vllm_config.model_config.hf_text_config
    layers = {layer_of(module, config) for module in adaptable(config)}
    for name in lora.target_modules or ():
        if not any(is_in_target_modules(layer, [name], PACKED) for layer in layers):
            raise ValueError(
                f"--lora-target-modules {name}: only q_proj, k_proj, v_proj, o_proj, gate_proj, "
                "up_proj and down_proj can be adapted"
            )
    lora.target_modules = sorted(
        layer for layer in layers if is_in_target_modules(layer, lora.target_modules, PACKED)
    )
