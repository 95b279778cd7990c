"""Which plan `_hopper` runs by, and its launches."""

from typing import NamedTuple

from torch import Tensor

from diffusiongemma_kernels import target
from diffusiongemma_kernels.moe_gemm.types import Nvfp4
from diffusiongemma_kernels.moe_sort.types import Sorted


class Registers(NamedTuple):
    launch: int  # a thread, of every program
    consuming: int
    fetching: int


class Plan(NamedTuple):
    tokens: int  # of a tile: 32, 64 or 128 ...
    more: int  # ... and so many beyond, 0 or 32
    least: int  # width of the narrowest product, 16 or 32
    consumers: int  # of a block of weights each, beside each other
    stages: int  # of 128 columns
    programs: int  # a processor
    registers: Registers

    @property
    def tile(self) -> int:
        return self.tokens + self.more


class Table(NamedTuple):
    """Up to `most` rows an expert on average."""

    most: float
    plan: Plan


LANE = 2  # columns that a lane reads together, see `order`
COPYING = 2  # warps that fetch tokens
TABLE = (  # by `run.py moe_gemm` on an H200, at 256, 512, 1,024 and 2,048 tokens
    Table(24, Plan(32, 0, 16, 2, 4, 2, Registers(80, 104, 32))),
    Table(48, Plan(64, 0, 16, 3, 3, 1, Registers(128, 152, 56))),
    Table(72, Plan(64, 32, 32, 2, 4, 1, Registers(168, 224, 56))),
    Table(float("inf"), Plan(128, 32, 32, 2, 3, 1, Registers(168, 224, 56))),
)


def runs_on(capability: tuple[int, int]) -> bool:
    return capability[0] == 9


def choose(rows: float) -> Plan:
    """`rows` is T * K / E.  Every plan gives a row the same bits."""
    return next(row.plan for row in TABLE if rows <= row.most)


def constants(plan: Plan, K: int) -> dict[str, int]:
    """What is compiled in.  `K`: slots a token."""
    return {
        "K": K,
        "N": plan.tokens,
        "MORE": plan.more,
        "LEAST": plan.least,
        "C": plan.consumers,
        "STAGES": plan.stages,
        "COPYING": COPYING,
        "CONSUMING": plan.registers.consuming,
        "FETCHING": plan.registers.fetching,
    }


def launch(
    x: Tensor, ordered: Sorted, topk_weights: Tensor, gate_up: Nvfp4, down: Nvfp4, plan: Plan
) -> Tensor:
    """Every slot's weighted row, once for an `ordered`.  [T * K, H], unwritten for nobody's ids

    x: arranged.
    """
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from diffusiongemma_kernels.moe_gemm import _hopper

    def pieces(weights: Nvfp4) -> tuple:
        E, row_blocks, column_blocks = weights.codes.shape[:3]
        codes = weights.codes.view(E, row_blocks, column_blocks * 8, 256)
        scales = weights.scales.view(E, row_blocks, column_blocks * 2, 256)
        return (
            TensorDescriptor.from_tensor(codes, [1, 1, 16, 256], _hopper.CODES_STAGE.value),
            TensorDescriptor.from_tensor(scales, [1, 1, 4, 256], _hopper.SCALES_STAGE.value),
            weights.global_scale,
        )

    rows = len(ordered.rows)
    h = x.new_empty(rows, gate_up.codes.shape[1] * 64)
    slots = x.new_empty(rows, down.rows)
    for read in (x, h):
        assert read.numel() < 2**31, f"offsets are 32 bits, got {tuple(read.shape)}"
    _hopper.experts[(target.of(x.device).processors * plan.programs,)](
        x,
        *pieces(gate_up),
        h,
        *pieces(down),
        ordered.rows,
        ordered.tiles,
        ordered.total,
        ordered.progress,
        topk_weights,
        slots,
        x.shape[1],
        gate_up.codes.shape[1],
        h.shape[1],
        down.codes.shape[1],
        ordered.tiles.shape[1],
        x.stride(0),
        h.stride(0),
        slots.stride(0),
        **constants(plan, topk_weights.shape[1]),
        num_warps=4,
        maxnreg=plan.registers.launch,
    )
    return slots
