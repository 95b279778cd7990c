"""Reopen the result with our own code and compare every number with the source's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from diffusiongemma_kernels.formats.nvfp4 import NVFP4, dequantize
from diffusiongemma_vllm import checkpoint, quantisation
from diffusiongemma_vllm.quantize.source import DOWN, FUSED, GATE_UP, PROJECTIONS, Source

LIMIT = 0.2  # of a tensor's norm; weights like a normal distribution lose 0.095


class LayerError(NamedTuple):
    """How far a layer's experts are from the source's, relative to their norm."""

    layer: int
    gate_up: float
    down: float


def verify(source: Source, folder: Path, device: str = "cpu") -> list[LayerError]:
    """Compare the result with its source, one file after the other.

    Raises:
        ValueError: naming the first tensor that is missing, too much, not the source's, or further
            from it than NVFP4 explains.
    """
    checkpoint.check_weights(folder)
    config = checkpoint.read_json(folder / checkpoint.CONFIG)
    if not quantisation.read(config.get("quantization_config") or {}).nvfp4_experts:
        raise _wrong(folder, f"{checkpoint.CONFIG} does not describe NVFP4 experts")
    errors: dict[tuple[int, str], float] = {}
    with tqdm(total=sum(map(len, source.files.values())), unit="tensor", desc="verifying") as bar:
        for name in source.files:
            before, after = source.folder / name, folder / name
            with safe_open(before, "pt") as old, safe_open(after, "pt") as new:
                left = set(new.keys())
                for tensor in old.keys():
                    match = FUSED.fullmatch(tensor)
                    if match is None:
                        _same(folder, tensor, old, new, left)
                    else:
                        want = old.get_tensor(tensor).to(device)
                        got = _read(folder, match[1], match[3], new, left, len(want))
                        errors[int(match[2]), match[3]] = _error(got, want, folder, tensor)
                    bar.update()
                if left:
                    raise _wrong(folder, f"{min(left)} is not of this checkpoint")
    layers = sorted({layer for layer, _ in errors})
    return [LayerError(n, errors[n, GATE_UP], errors[n, DOWN]) for n in layers]


def _same(folder: Path, name: str, old: object, new: object, left: set[str]) -> None:
    got, want = _take(folder, new, name, left), old.get_tensor(name)  # type: ignore[attr-defined]
    if got.dtype != want.dtype or not torch.equal(got, want):
        raise _wrong(folder, f"{name} differs from the source's")


def _read(
    folder: Path, root: str, leaf: str, file: object, left: set[str], count: int
) -> Iterator[Tensor]:
    """Dequantised experts, one after the other: [2 F, H] or [H, F] f32"""
    for expert in range(count):
        parts, scales = [], set()
        for projection in PROJECTIONS[leaf]:
            name = f"{root}.{expert}.{projection}"
            left.discard(f"{name}.input_scale")
            q = NVFP4(*(
                _take(folder, file, f"{name}.{part}", left)
                for part in ("weight", "weight_scale", "weight_scale_2")
            ))
            scales.add(q.global_scale.item())
            parts.append(dequantize(q))
        if len(scales) > 1:
            raise _wrong(folder, f"{root}.{expert}: gate and up have two weight_scale_2")
        yield torch.cat(parts)


def _take(folder: Path, file: object, name: str, left: set[str]) -> Tensor:
    if name not in left:
        raise _wrong(folder, f"{name} is missing")
    left.discard(name)
    tensor: Tensor = file.get_tensor(name)  # type: ignore[attr-defined]
    return tensor


def _error(got: Iterator[Tensor], want: Tensor, folder: Path, name: str) -> float:
    squares = norm = 0.0
    for mine, theirs in zip(got, want, strict=True):
        theirs = theirs.float()
        squares += float((mine.to(theirs.device) - theirs).square().sum(dtype=torch.float64))
        norm += float(theirs.square().sum(dtype=torch.float64))
    error = (squares / norm) ** 0.5 if norm else float(squares > 0)
    if not error <= LIMIT:
        raise _wrong(folder, f"{name} is off by {error:.3f} of its norm")
    return error


def _wrong(folder: Path, what: str) -> ValueError:
    return ValueError(f"{folder}: {what}; delete the folder and quantise again")
