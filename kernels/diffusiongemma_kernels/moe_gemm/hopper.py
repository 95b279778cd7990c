"""Which plan `_hopper` runs by, and its launches."""

from typing import NamedTuple

from torch import Tensor

from diffusiongemma_kernels import target
from diffusiongemma_kernels.moe_gemm.types import Nvfp4
from diffusiongemma_kernels.moe_sort.types import Sorted


class Ring(NamedTuple):
    blocks: int  # of 64 columns a stage
    stages: int


class Registers(NamedTuple):
    launch: int  # a thread, of every program
    consuming: int
    fetching: int


class Plan(NamedTuple):
    tokens: int  # of a tile: 32, 64 or 128 ...
    more: int  # ... and so many beyond, 0 or 32
    least: int  # width of the narrowest product, 16 or 32
    consumers: int  # of a block of weights each, beside each other
    wide: Ring  # where 128 divides the columns
    narrow: Ring
    programs: int  # a processor
    registers: Registers

    @property
    def tile(self) -> int:
        return self.tokens + self.more

    def ring(self, columns: int) -> Ring:
        return self.narrow if columns % 128 else self.wide


class Table(NamedTuple):
    """Up to `most` rows an expert on average."""

    most: float
    plan: Plan


COPYING = 2  # warps that fetch tokens
TABLE = (  # by `run.py moe_gemm` on an H200, at 256, 512, 1,024 and 2,048 tokens
    Table(24, Plan(32, 0, 16, 2, Ring(2, 4), Ring(1, 8), 2, Registers(80, 104, 32))),
    Table(48, Plan(64, 0, 16, 3, Ring(2, 3), Ring(1, 6), 1, Registers(128, 152, 56))),
    Table(72, Plan(64, 32, 32, 2, Ring(2, 4), Ring(1, 8), 1, Registers(168, 224, 56))),
    Table(float("inf"), Plan(128, 32, 32, 2, Ring(2, 3), Ring(1, 7), 1, Registers(168, 224, 56))),
)


def runs_on(capability: tuple[int, int]) -> bool:
    return capability[0] == 9


def choose(rows: float) -> Plan:
    """`rows` is T * K / E.  Every plan gives a row the same bits."""
    return next(row.plan for row in TABLE if rows <= row.most)


def constants(plan: Plan, K: int, columns: int) -> dict[str, int]:
    """What is compiled in.  `K`: slots a token for `gate_up`, 0 for `down`."""
    blocks, stages = plan.ring(columns)
    return {
        "K": K,
        "N": plan.tokens,
        "MORE": plan.more,
        "LEAST": plan.least,
        "C": plan.consumers,
        "KB": blocks,
        "STAGES": stages,
        "COPYING": COPYING,
        "CONSUMING": plan.registers.consuming,
        "FETCHING": plan.registers.fetching,
    }


def launch_gate_up(ordered: Sorted, weights: Nvfp4, K: int, plan: Plan) -> Tensor:
    """gelu(gate) * up of every row, once for an `ordered`.  [T * K, F up to 64], by expert"""
    h = ordered.x.new_empty(len(ordered.rows), weights.codes.shape[1] * 64)
    _launch(ordered.x, ordered, weights, weights.global_scale, h, plan, K)
    return h


def launch_down(
    ordered: Sorted, h: Tensor, topk_weights: Tensor, weights: Nvfp4, plan: Plan
) -> Tensor:
    """Every slot's weighted row, once for an `ordered`.  [T * K, H], unwritten for nobody's ids"""
    slots = h.new_empty(len(ordered.rows), weights.rows)
    _launch(h, ordered, weights, topk_weights, slots, plan, 0)
    return slots


def _launch(
    x: Tensor,
    ordered: Sorted,
    weights: Nvfp4,
    topk_weights: Tensor,
    out: Tensor,
    plan: Plan,
    K: int,
) -> None:
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    from diffusiongemma_kernels.moe_gemm import _hopper

    columns = x.shape[1]
    assert x.numel() < 2**31, f"offsets are 32 bits, got {tuple(x.shape)}"
    blocks = plan.ring(columns).blocks
    E, row_blocks, column_blocks = weights.codes.shape[:3]
    codes = weights.codes.view(E, row_blocks, column_blocks * 8, 256)
    scales = weights.scales.view(E, row_blocks, column_blocks * 2, 256)
    _hopper.experts[(target.of(x.device).processors * plan.programs,)](
        x,
        TensorDescriptor.from_tensor(codes, [1, 1, blocks * 8, 256], _hopper.CODES_STAGE.value),
        TensorDescriptor.from_tensor(scales, [1, 1, blocks * 2, 256], _hopper.SCALES_STAGE.value),
        weights.global_scale,
        ordered.rows,
        ordered.tiles,
        ordered.total,
        ordered.tickets[0 if K else 1 :],
        topk_weights,
        out,
        columns,
        row_blocks,
        ordered.tiles.shape[1],
        x.stride(0),
        out.stride(0),
        **constants(plan, K, columns),
        num_warps=4,
        maxnreg=plan.registers.launch,
    )
