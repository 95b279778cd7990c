"""Has vLLM read NVIDIA's NVFP4 layout of this architecture by our own experts.

vLLM lets a plugin register a quantisation method that is asked first about every checkpoint.  Ours
claims DiffusionGemma with NVFP4 experts alone; any other checkpoint keeps vLLM's own methods.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.platforms import current_platform

from diffusiongemma_vllm import quantisation
from diffusiongemma_vllm.compat import ARCHITECTURE
from diffusiongemma_vllm.quantisation import Quantisation

NAME = "diffusiongemma_nvfp4"


class Nvfp4ExpertsConfig(QuantizationConfig):
    """Experts in NVFP4; attention, dense MLPs, router, embedding and vision are not quantised.

    A KV cache in FP8 has scale 1.0: the layout holds no scales for it.
    """

    def __init__(self, description: Quantisation) -> None:
        super().__init__()
        self.description = description

    def get_name(self) -> Any:
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        if current_platform.is_cpu():
            return [torch.bfloat16, torch.float16, torch.float32]
        return [torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        return ["hf_quant_config.json"]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Nvfp4ExpertsConfig:
        return cls(quantisation.read(config))

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: Any, user_quant: str | None, hf_config: Any = None
    ) -> Any:
        """Raises ValueError on CPU for a DiffusionGemma in any other quantised format."""
        if ARCHITECTURE not in (getattr(hf_config, "architectures", None) or []):
            return None
        found = quantisation.read(hf_quant_cfg)
        if found.nvfp4_experts:
            return NAME
        if current_platform.is_cpu():
            raise ValueError(
                f"config.json: weights quantised by {found} need a GPU; on CPU serve a checkpoint "
                "in BF16 or FP32, or one with NVFP4 experts (diffusiongemma-vllm quantize)"
            )
        return None

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> Any:
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

        return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None


def register() -> None:
    register_quantization_config(NAME)(Nvfp4ExpertsConfig)
