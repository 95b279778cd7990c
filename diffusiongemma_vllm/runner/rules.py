"""The denoising rules of a server, from its checkpoint and its configuration."""

from __future__ import annotations

from typing import Any

from diffusiongemma_vllm import checkpoint
from diffusiongemma_vllm.config import DenoiseConfig, denoise_config


def server_rules(vllm_config: Any) -> DenoiseConfig:
    """Reads files: once for an engine, once for a process that takes requests.

    vllm_config: after the config hook, which fills in the canvas.  Raises ValueError as
    ``denoise_config`` does.
    """
    model, diffusion = vllm_config.model_config, vllm_config.diffusion_config
    return denoise_config(
        checkpoint.generation_config(model), canvas_length=diffusion.canvas_length,
        vocab_size=model.get_vocab_size(), max_steps=diffusion.max_denoising_steps,
    )
