"""When `_hopper` runs, and its launch."""

from typing import NamedTuple

import torch
from torch import Tensor

from diffusiongemma_kernels import target
from diffusiongemma_kernels.lm_head import _config


class Registers(NamedTuple):
    launch: int  # a thread, of all warps
    multiplying: int
    folding: int
    fetching: int


ROWS, STRIP = 128, 64  # of a tile: rows, and a quarter of its tokens
COLUMNS, STAGES = 64, 3  # a stage; with a tile of logits they fill shared memory
REGISTERS = Registers(128, 168, 136, 40)


def runs_on(capability: tuple[int, int]) -> bool:
    return capability[0] == 9


def runs(hidden: Tensor, weight: Tensor) -> bool:
    """Whether it does these.  No batch changes that, so a row keeps its bits."""
    return (
        runs_on(target.of(hidden.device).capability)
        and hidden.dtype == torch.bfloat16
        and weight.shape[0] % _config.GROUP == 0
        and hidden.stride(0) % 8 == weight.stride(0) % 8 == 0  # 16 bytes
        and hidden.data_ptr() % 16 == weight.data_ptr() % 16 == 0
    )


def constants(softcap: float) -> dict[str, float]:
    """What is compiled in."""
    return {
        "SOFTCAP": softcap,
        "MULTIPLYING": REGISTERS.multiplying,
        "FOLDING": REGISTERS.folding,
        "FETCHING": REGISTERS.fetching,
    }


def launch(
    hidden: Tensor, weight: Tensor, rows: tuple[Tensor, Tensor, Tensor], logits: Tensor,
    tops: Tensor, sums: Tensor, *, softcap: float, group: int,
) -> None:
    """What `_kernel.read` writes.  rows: temperature, seed and counter; group: of weight's first"""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from diffusiongemma_kernels.lm_head import _hopper

    layout = _hopper.OPERAND.value
    (R, V), H, tiles = logits.shape, hidden.shape[1], sums.shape[2]
    _hopper.read[(target.of(hidden.device).processors,)](
        TensorDescriptor.from_tensor(hidden, [ROWS, COLUMNS], layout),
        TensorDescriptor.from_tensor(weight, [STRIP, COLUMNS], layout),
        *rows,
        logits,
        tops,
        sums,
        R,
        V,
        H,
        tiles,
        group,
        logits.stride(0),
        **constants(softcap),
        num_warps=4,
        maxnreg=REGISTERS.launch,
    )
