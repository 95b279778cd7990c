"""What the result says of itself, in ModelOpt's two places."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from diffusiongemma_vllm.quantisation import BLOCK, NVFP4, NVFP4_WEIGHTS

EXCLUDED = [
    "lm_head", "*embed_vision*", "*mlp*", "*router*", "*self_attn*", "*self_conditioning*",
    "*vision_tower*",
]


def hf_quant_config(*, calibrated: bool) -> dict[str, Any]:
    """The content of hf_quant_config.json: experts in NVFP4, KV cache in FP8 with scale 1."""
    return {
        "producer": {"name": "modelopt", "version": version("nvidia-modelopt")},
        "quantization": {
            "quant_algo": NVFP4 if calibrated else NVFP4_WEIGHTS,
            "kv_cache_quant_algo": "FP8",
            "group_size": BLOCK,
            "exclude_modules": EXCLUDED,
        },
    }


def quantization_config(*, calibrated: bool) -> dict[str, Any]:
    """``quantization_config`` of config.json."""
    from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format

    converted: dict[str, Any] = convert_hf_quant_config_format(
        hf_quant_config(calibrated=calibrated)
    )
    return converted
