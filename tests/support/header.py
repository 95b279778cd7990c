"""google/diffusiongemma-26B-A4B-it without its weights: config, and each tensor's name and shape.

Source: the published BF16 checkpoint of 1,047 tensors and 51,647,562,456 bytes, and NVIDIA's
NVFP4 one of 47,067 tensors and 18,818,050,776 bytes.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

TENSORS = 1047
BYTES = 51_647_562_456
NVFP4_TENSORS, NVFP4_BYTES = 47_067, 18_818_050_776
LAYERS, FULL_EVERY, VISION_LAYERS = 30, 6, 27
FULL = frozenset(range(FULL_EVERY - 1, LAYERS, FULL_EVERY))
V, H, F, E, X = 262144, 2816, 2112, 128, 704  # vocabulary, hidden, MLP, experts, expert width
VH, VF = 1152, 4304  # vision: hidden, MLP

TEXT = dict(
    attention_bias=False, attention_dropout=0.0, bos_token_id=2, dtype="bfloat16", eos_token_id=1,
    final_logit_softcapping=30.0, global_head_dim=512, head_dim=256,
    hidden_activation="gelu_pytorch_tanh", hidden_size=H, initializer_range=0.02,
    intermediate_size=F, max_position_embeddings=262144, model_type="diffusion_gemma_text",
    layer_types=["full_attention" if i in FULL else "sliding_attention" for i in range(LAYERS)],
    moe_intermediate_size=X, num_attention_heads=16, num_experts=E, num_global_key_value_heads=2,
    num_hidden_layers=LAYERS, num_key_value_heads=8, pad_token_id=0, rms_norm_eps=1e-6,
    rope_parameters={
        "full_attention": {
            "partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional",
        },
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    sliding_window=1024, tie_word_embeddings=True, top_k_experts=8,
    use_bidirectional_attention="vision", vocab_size=V,
)
VISION = dict(
    attention_bias=False, attention_dropout=0.0, default_output_length=280, dtype="bfloat16",
    global_head_dim=72, head_dim=72, hidden_activation="gelu_pytorch_tanh", hidden_size=VH,
    intermediate_size=VF, max_position_embeddings=131072, model_type="gemma4_vision",
    num_attention_heads=16, num_hidden_layers=VISION_LAYERS, num_key_value_heads=16,
    patch_size=16, pooling_kernel_size=3, position_embedding_size=10240, rms_norm_eps=1e-6,
    rope_parameters={"rope_theta": 100.0, "rope_type": "default"}, standardize=True,
    use_clipped_linears=False,
)
CONFIG = dict(
    architectures=["DiffusionGemmaForBlockDiffusion"], boi_token_id=255999, canvas_length=256,
    dtype="bfloat16", eoi_token_id=258882, eos_token_id=[1, 106], image_token_id=258880,
    initializer_range=0.02, model_type="diffusion_gemma", text_config=TEXT,
    tie_word_embeddings=True, transformers_version="5.8.0.dev0", vision_config=VISION,
    vision_soft_tokens_per_image=280,
)
GENERATION = dict(
    confidence_threshold=0.005, eos_token_id=[1, 106, 50], max_denoising_steps=48,
    max_new_tokens=256, pad_token_id=0,
    sampler_config={"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    stability_threshold=1, t_max=0.8, t_min=0.4, transformers_version="5.8.0.dev0",
)


QUANTIZATION = dict(
    config_groups={
        "group_0": {
            "input_activations": {
                "dynamic": False, "num_bits": 4, "type": "float", "group_size": 16,
            },
            "weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16},
            "targets": ["Linear"],
        },
    },
    ignore=[
        "lm_head", "*embed_vision*", "*mlp*", "*router*", "*self_attn*", "*self_conditioning*",
        "*vision_tower*",
    ],
    quant_algo="NVFP4", kv_cache_scheme={"dynamic": False, "num_bits": 8, "type": "float"},
    producer={"name": "modelopt", "version": "0.45.0.dev127+ga3a02ca5b.d20260608"},
    quant_method="modelopt",
)


def write(folder: Path, **extra) -> Path:
    """The two config files, no weights.  extra: further fields of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | extra))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def _layer(index: int) -> dict[str, list[int]]:
    full = index in FULL
    dim = 512 if full else 256
    q, kv = 16 * dim, (2 if full else 8) * dim
    shapes = {
        "self_attn.q_proj.weight": [q, H], "self_attn.k_proj.weight": [kv, H],
        "self_attn.o_proj.weight": [H, q],
        "self_attn.q_norm.weight": [dim], "self_attn.k_norm.weight": [dim],
        "mlp.gate_proj.weight": [F, H], "mlp.up_proj.weight": [F, H],
        "mlp.down_proj.weight": [H, F], "layer_scalar": [1],
        "router.proj.weight": [E, H], "router.scale": [H], "router.per_expert_scale": [E],
        "experts.gate_up_proj": [E, 2 * X, H], "experts.down_proj": [E, H, X],
    }
    if not full:
        shapes["self_attn.v_proj.weight"] = [kv, H]
    for norm in (
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
        "pre_feedforward_layernorm_2", "post_feedforward_layernorm",
        "post_feedforward_layernorm_1", "post_feedforward_layernorm_2",
    ):
        shapes[f"{norm}.weight"] = [H]
    return {f"model.decoder.layers.{index}.{name}": shape for name, shape in shapes.items()}


def _vision() -> dict[str, list[int]]:
    tower = "model.encoder.vision_tower"
    shapes = {
        "model.encoder.embed_vision.embedding_projection.weight": [H, VH],
        f"{tower}.patch_embedder.input_proj.weight": [VH, 768],
        f"{tower}.patch_embedder.position_embedding_table": [2, 10240, VH],
        f"{tower}.std_bias": [VH], f"{tower}.std_scale": [VH],
    }
    for index in range(VISION_LAYERS):
        layer = f"{tower}.encoder.layers.{index}"
        for letter in "qkvo":
            shapes[f"{layer}.self_attn.{letter}_proj.linear.weight"] = [VH, VH]
        for letter in "qk":
            shapes[f"{layer}.self_attn.{letter}_norm.weight"] = [72]
        for name in ("gate", "up"):
            shapes[f"{layer}.mlp.{name}_proj.linear.weight"] = [VF, VH]
        shapes[f"{layer}.mlp.down_proj.linear.weight"] = [VH, VF]
        for norm in (
            "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ):
            shapes[f"{layer}.{norm}.weight"] = [VH]
    return shapes


def tensors() -> dict[str, list[int]]:
    """Name -> shape of all tensors, BF16 each."""
    shapes = {
        "model.decoder.embed_tokens.weight": [V, H], "model.decoder.norm.weight": [H],
        "model.decoder.self_conditioning.pre_norm.weight": [H],
        "model.decoder.self_conditioning.gate_proj.weight": [F, H],
        "model.decoder.self_conditioning.up_proj.weight": [F, H],
        "model.decoder.self_conditioning.down_proj.weight": [H, F],
    }
    for index in range(LAYERS):
        shapes |= _layer(index)
        shapes[f"model.encoder.language_model.layers.{index}.layer_scalar"] = [1]
    shapes |= _vision()
    assert len(shapes) == TENSORS, len(shapes)
    assert sum(2 * prod(shape) for shape in shapes.values()) == BYTES
    return shapes


def nvfp4_tensors() -> dict[str, tuple[list[int], str]]:
    """Name -> shape and safetensors dtype of all tensors of NVIDIA's checkpoint."""
    found = {name: (shape, "BF16") for name, shape in tensors().items() if ".experts." not in name}
    for layer in range(LAYERS):
        for expert in range(E):
            for projection, (rows, columns) in {
                "gate_proj": (X, H), "up_proj": (X, H), "down_proj": (H, X),
            }.items():
                name = f"model.decoder.layers.{layer}.experts.{expert}.{projection}"
                found[f"{name}.weight"] = [rows, columns // 2], "U8"
                found[f"{name}.weight_scale"] = [rows, columns // 16], "F8_E4M3"
                found[f"{name}.weight_scale_2"] = [], "F32"
                found[f"{name}.input_scale"] = [], "F32"
    assert len(found) == NVFP4_TENSORS, len(found)
    sizes = {"BF16": 2, "U8": 1, "F8_E4M3": 1, "F32": 4}
    assert sum(sizes[kind] * prod(shape) for shape, kind in found.values()) == NVFP4_BYTES
    return found
