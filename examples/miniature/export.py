"""Write a checkpoint folder as google/diffusiongemma-26B-A4B-it lays it out.

The text weights come from the training twin, the vision tower (which the architecture demands) is
small and random: `model.decoder.*` once, `model.encoder.*` only the vision tower, its projection
and the layer scalars.
"""

import json
from pathlib import Path

import torch
from model import Miniature, Sizes
from safetensors.torch import save_file
from tokens import STOP, VOCAB, write_tokenizer
from torch import Tensor

_SHIPPED = Path(__file__).parents[2] / "diffusiongemma_vllm" / "miniature"
# at most 70 x 9 patches: no side is longer than the 256 rows of the position table
SOFT_TOKENS = 70
VISION = {
    "attention_bias": False, "attention_dropout": 0.0, "default_output_length": SOFT_TOKENS,
    "dtype": "bfloat16", "global_head_dim": 32, "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 64, "initializer_range": 0.02,
    "intermediate_size": 128, "max_position_embeddings": 131072, "model_type": "gemma4_vision",
    "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "patch_size": 16,
    "pooling_kernel_size": 3, "position_embedding_size": 256, "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "standardize": True,
    "use_clipped_linears": False,
}  # fmt: skip
GENERATION = {
    "confidence_threshold": 0.0003, "eos_token_id": STOP, "max_denoising_steps": 48,
    "max_new_tokens": 256, "pad_token_id": 0,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "stability_threshold": 1, "t_max": 0.8, "t_min": 0.4, "transformers_version": "5.8.0.dev0",
}  # fmt: skip


def config(sizes: Sizes) -> dict:
    """config.json with the real checkpoint's keys."""
    text = {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
        "dtype": "bfloat16", "eos_token_id": 1, "final_logit_softcapping": sizes.softcap,
        "global_head_dim": sizes.global_head_dim, "head_dim": sizes.head_dim,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": sizes.hidden,
        "initializer_range": 0.02, "intermediate_size": sizes.dense,
        "layer_types": [
            "full_attention" if i in sizes.full else "sliding_attention"
            for i in range(sizes.layers)
        ],
        "max_position_embeddings": 262144, "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": sizes.expert, "num_attention_heads": sizes.heads,
        "num_experts": sizes.experts, "num_global_key_value_heads": sizes.global_kv_heads,
        "num_hidden_layers": sizes.layers, "num_key_value_heads": sizes.kv_heads,
        "pad_token_id": 0, "rms_norm_eps": sizes.eps,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25, "rope_theta": 1000000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": sizes.window, "tie_word_embeddings": True,
        "top_k_experts": sizes.top_k, "use_bidirectional_attention": "vision",
        "vocab_size": sizes.vocab,
    }  # fmt: skip
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "boi_token_id": VOCAB["<|image>"], "canvas_length": sizes.canvas, "dtype": "bfloat16",
        "eoi_token_id": VOCAB["<image|>"], "eos_token_id": STOP[:2],
        "image_token_id": VOCAB["<|image|>"], "initializer_range": 0.02,
        "model_type": "diffusion_gemma", "text_config": text, "tie_word_embeddings": True,
        "transformers_version": "5.8.0.dev0", "vision_config": VISION,
        "vision_soft_tokens_per_image": SOFT_TOKENS,
    }  # fmt: skip


def vision_weights(hidden: int) -> dict[str, Tensor]:
    """A random vision tower: names and shapes of Gemma 4's, the same numbers every time."""
    rng = torch.Generator().manual_seed(0)
    width, inner, head = VISION["hidden_size"], VISION["intermediate_size"], VISION["head_dim"]
    pixels = 3 * VISION["patch_size"] ** 2

    def product(outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, generator=rng) * inputs**-0.5

    root = "model.encoder.vision_tower."
    places = torch.randn(2, VISION["position_embedding_size"], width, generator=rng) * 0.02
    weights = {
        root + "patch_embedder.input_proj.weight": product(width, pixels),
        root + "patch_embedder.position_embedding_table": places,
        root + "std_bias": torch.zeros(width),
        root + "std_scale": torch.ones(width),
        "model.encoder.embed_vision.embedding_projection.weight": product(hidden, width),
    }
    for i in range(VISION["num_hidden_layers"]):
        layer = f"{root}encoder.layers.{i}."
        for name in "qkvo":
            weights[f"{layer}self_attn.{name}_proj.linear.weight"] = product(width, width)
        for name in ("q_norm", "k_norm"):
            weights[f"{layer}self_attn.{name}.weight"] = torch.ones(head)
        for name in ("gate", "up"):
            weights[f"{layer}mlp.{name}_proj.linear.weight"] = product(inner, width)
        weights[layer + "mlp.down_proj.linear.weight"] = product(width, inner)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            weights[f"{layer}{name}_layernorm.weight"] = torch.ones(width)
    return weights


def save_checkpoint(model: Miniature, folder: Path) -> None:
    """The whole folder: weights in bf16, configs, tokenizer, chat template, processor."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = vision_weights(model.sizes.hidden) | model.state_dict()
    for i in range(model.sizes.layers):
        scalar = weights[f"model.decoder.layers.{i}.layer_scalar"]
        weights[f"model.encoder.language_model.layers.{i}.layer_scalar"] = scalar.clone()
    weights = {name: w.detach().cpu().bfloat16().contiguous() for name, w in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (
        ("config.json", config(model.sizes)),
        ("generation_config.json", GENERATION),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_tokenizer(folder)
    for name in ("chat_template.jinja", "processor_config.json"):
        if not (folder / name).exists():
            (folder / name).write_bytes((_SHIPPED / name).read_bytes())
