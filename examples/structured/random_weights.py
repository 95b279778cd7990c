"""A copy of a checkpoint with random weights: it writes noise, with the same tokenizer."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def randomised(checkpoint: Path, folder: Path, seed: int = 0) -> Path:
    """Write the copy to `folder`; returns it."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(WEIGHTS), dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in load_file(checkpoint / WEIGHTS).items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() < 2:  # norms and scales
            value = 1 + 0.2 * noise
        elif "embed" in name:
            value = 0.5 * noise
        else:
            value = noise * tensor.shape[-1] ** -0.5
        weights[name] = value.to(tensor.dtype)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder
