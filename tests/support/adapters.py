"""LoRA adapters as PEFT writes them for transformers' class, and the same merged by hand."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PROJECTIONS = r"model\.decoder\..*\b([qkvo]|gate|up|down)_proj"
PREFIX = "base_model.model."


def skeleton(checkpoint):
    """transformers' model of a checkpoint, without weights."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    with torch.device("meta"):
        return DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig.from_pretrained(checkpoint))


def write(folder, model, *, seed, rank=4, alpha=6, modules=PROJECTIONS, size=0.3, **config):
    """A random adapter of the linear layers of ``model`` whose names match; its folder.

    model: transformers' ``DiffusionGemmaForBlockDiffusion``.  size: of its product, beside weights
    that keep a row's size.  config: further fields of ``adapter_config.json``.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, layer in model.named_modules():
        if not re.fullmatch(modules, name):
            continue
        out, width = layer.weight.shape
        a = torch.randn(rank, width, generator=generator) * width**-0.5
        b = torch.randn(out, rank, generator=generator) * size * rank**-0.5 * rank / alpha
        tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    assert tensors, modules
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": None, "r": rank, "lora_alpha": alpha,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "target_modules": modules,
        "modules_to_save": None, "use_rslora": False, "use_dora": False, "init_lora_weights": True,
        "rank_pattern": {}, "alpha_pattern": {}, **config,
    }))
    return folder


def merged(model, folder):
    """A copy of ``model`` with an adapter's products added to its weights."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, a in tensors.items():
            if "lora_A" in name:
                layer = model.get_submodule(name.removeprefix(PREFIX).split(".lora_A")[0])
                product = tensors[name.replace("lora_A", "lora_B")] @ a
                layer.weight += product * config["lora_alpha"] / config["r"]
    return model
