"""One layer's fused experts, rounded by NVIDIA's ModelOpt and named as its export names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusiongemma_vllm.quantisation import BLOCK
from diffusiongemma_vllm.quantize.source import FUSED, PROJECTIONS


@dataclass(frozen=True)
class InputScales:
    """Activation scales of each layer's two projections; None where nothing was calibrated."""

    amax: Mapping[str, float] | None  # fused tensor's name -> largest activation

    def of(self, name: str) -> Tensor | None:
        """[] f32: amax / (6 * 448)"""
        if self.amax is None:
            return None
        return torch.tensor(self.amax[name], dtype=torch.float32) / (6.0 * 448.0)


def rounded(name: str, fused: Tensor, inputs: InputScales) -> Iterator[tuple[str, Tensor]]:
    """The tensors that stand for one fused tensor.  fused: [E, 2 F, H] or [E, H, F]

    Gate and up of an expert share one global scale.  Results are on the CPU.

    Raises:
        ValueError: naming the tensor where it holds NaN or infinity.
    """
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    match = FUSED.fullmatch(name)
    assert match is not None, name
    if not bool(torch.isfinite(fused).all()):
        raise ValueError(f"{name} holds NaN or infinity: download the BF16 checkpoint again")
    scale = inputs.of(name)
    for expert, weight in enumerate(fused):
        amax = NVFP4QTensor.get_weights_scaling_factor_2(weight)
        shared = torch.where(amax > 0, amax, 1.0)  # an expert of zeros has any scale
        projections = PROJECTIONS[match[3]]
        for projection, part in zip(projections, weight.chunk(len(projections)), strict=True):
            codes, scales, _ = NVFP4QTensor.quantize(
                part.contiguous(), BLOCK, weights_scaling_factor_2=shared
            )
            root = f"{match[1]}.{expert}.{projection}"
            yield f"{root}.weight", codes._quantized_data.cpu()
            yield f"{root}.weight_scale", scales.cpu()
            yield f"{root}.weight_scale_2", shared.cpu().clone()
            if scale is not None:
                yield f"{root}.input_scale", scale.clone()
