"""Small random checkpoints with every feature of the architecture, saved by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SPECIALS = {"eos": 1, "turn": 2, "pad": 0}


def text_config(**overrides):
    config = dict(
        model_type="diffusion_gemma_text", vocab_size=512, hidden_size=64, intermediate_size=96,
        moe_intermediate_size=32, num_experts=8, top_k_experts=2, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, num_global_key_value_heads=1, head_dim=32,
        global_head_dim=64, sliding_window=64, max_position_embeddings=262144,
        final_logit_softcapping=30.0, tie_word_embeddings=True, attention_bias=False,
        hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, pad_token_id=0,
        use_bidirectional_attention="vision", dtype="float32",
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6,
            },
        },
    )
    return config | overrides


VISION = dict(
    model_type="gemma4_vision", hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, head_dim=16, global_head_dim=16, patch_size=16,
    pooling_kernel_size=3, position_embedding_size=64, default_output_length=280,
    standardize=True, use_clipped_linears=False,
)

GENERATION = dict(
    confidence_threshold=0.005, eos_token_id=[1, 2], max_denoising_steps=48, max_new_tokens=256,
    pad_token_id=0, sampler_config={"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    stability_threshold=1, t_max=0.8, t_min=0.4,
)


def build(
    folder: Path, *, seed: int = 0, canvas: int = 32, vision: dict = VISION, **overrides
) -> Path:
    """Write a checkpoint in fp32 to ``folder`` and return it.
    """
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    config = DiffusionGemmaConfig(
        text_config=text_config(**overrides), vision_config=vision, canvas_length=canvas,
        image_token_id=10, boi_token_id=11, eoi_token_id=12, tie_word_embeddings=True,
    )
    config.dtype = torch.float32
    torch.manual_seed(seed)
    model = DiffusionGemmaForBlockDiffusion(config).float().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "layer_scalar" in name:
                tensor.fill_(0.7)
            elif "q_norm" in name or "k_norm" in name:
                # Attention is not scaled: weights near 1 would make it a maximum, and rounding
                # errors chaos (transformers in fp32 against fp64: 1e-4 of the largest logit).
                tensor.copy_(0.3 * (1 + 0.2 * torch.randn_like(tensor)))
            elif "norm" in name or "scale" in name:
                tensor.copy_(1 + 0.2 * torch.randn_like(tensor))
            elif "vision" not in name:
                tensor.copy_(torch.randn_like(tensor) * tensor.shape[-1] ** -0.5)
        embed = model.model.decoder.embed_tokens.weight
        embed.copy_(torch.randn_like(embed) * 0.5)
    model.save_pretrained(folder)
    Path(folder, "generation_config.json").write_text(json.dumps(GENERATION, indent=2))
    return Path(folder)
