"""The expert GEMMs in Gluon: Triton's interpreter does not run it, so a Hopper GPU is needed."""

import pytest
import torch

from diffusiongemma_kernels.formats.nvfp4 import NVFP4, dequantize
from diffusiongemma_kernels.moe_gemm import hopper, op, pack
from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_kernels.moe_gemm.testing import (
    MOE,
    Case,
    exact,
    make,
    packed,
    random_nvfp4,
    worst_row,
)

PLANS = [row.plan for row in hopper.TABLE]
CASES = [
    Case(1, "one row, experts without rows"),
    Case(17, "nothing divides", 5, 3, 144, 80),
    Case(300, "skewed", zipf=2.0),
    Case(700, "every width", 12, 8, 256, 192, zipf=1.0),
]


def test_every_tile_has_a_plan() -> None:
    for rows in (0.1, 16, 32, 64, 128, 4000):
        plan = hopper.choose(rows)
        assert plan.consumers in (2, 3) and plan.more in (0, 32) and plan.least in (16, 32)
        assert plan.tile >= min(1.25 * rows, 160)  # one tile an expert, as far as tiles go
        warps = 4 * plan.consumers + 4
        kept = plan.consumers * plan.registers.consuming + plan.registers.fetching
        assert 4 * kept <= warps * plan.registers.launch
        assert plan.programs * warps * 32 * plan.registers.launch <= 65536
    assert [hopper.runs_on(gpu) for gpu in ((8, 0), (9, 0), (10, 0))] == [False, True, False]


def make_bf16(case: Case) -> tuple:
    (x, ids, share), gate_up, down = make(case, "cuda")
    return (x.bfloat16(), ids, share), gate_up, down


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_plans_agree_to_the_bit(case: Case, hopper_gpu: torch.device) -> None:
    routed, gate_up, down = make_bf16(case)
    weights, want = packed(gate_up, down), exact(routed, gate_up, down)
    got = [summed(op.moe_hopper(*routed, *weights, plan=plan)) for plan in PLANS]
    assert worst_row(got[0], want) < MOE[torch.bfloat16]
    for other in got[1:]:
        assert torch.equal(other, got[0])


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.tile)
def test_one_expert_takes_all(plan: hopper.Plan, hopper_gpu: torch.device) -> None:
    (x, ids, share), gate_up, down = make_bf16(Case(400, ""))
    ids = torch.full_like(ids, 3)
    got = summed(op.moe_hopper(x, ids, share, *packed(gate_up, down), plan=plan))
    assert worst_row(got, exact((x, ids, share), gate_up, down)) < MOE[torch.bfloat16]


@pytest.mark.gpu
def test_experts_of_other_ranks_add_nothing(hopper_gpu: torch.device) -> None:
    (x, ids, share), gate_up, down = make_bf16(Case(17, ""))
    weights = packed(gate_up, down)
    ids = ids - 2  # -2 and -1 are nobody's; 4 and 5 stay unused
    ids[3] = 6
    want = exact((x, ids, share), gate_up, down)
    assert want[3].abs().sum() == 0
    assert worst_row(summed(op.moe_hopper(x, ids, share, *weights)), want) < MOE[torch.bfloat16]
    assert not summed(op.moe_hopper(x, torch.full_like(ids, -1), share, *weights)).any()


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.tile)
def test_every_code_and_scale(plan: hopper.Plan, hopper_gpu: torch.device) -> None:
    """Identity activations read the decoded weights back, bit for bit, as gelu(8) is 8."""
    E, H, F = 1, 256, 128
    codes, scales, _ = random_nvfp4(E, H, F, scales=(1, 0x7F), device=hopper_gpu)
    one = torch.ones(1, device=hopper_gpu)
    down = pack.pack(codes, scales, one, gate_up=False)
    numbers = torch.zeros(1, 2 * F, H, dtype=torch.uint8, device=hopper_gpu)
    numbers[0, :F] = 6  # 4.0, times 2
    numbers[0, F:, :F] = 2 * torch.eye(F)  # 1.0
    twos = torch.ones(1, 2 * F, H // 16, device=hopper_gpu)
    twos[0, :F] = 2
    pairs = numbers[..., ::2] | numbers[..., 1::2] << 4
    gate_up = pack.pack(pairs, twos.to(torch.float8_e4m3fn), one, gate_up=True)
    x = torch.eye(F, H, device=hopper_gpu, dtype=torch.bfloat16)
    ids = torch.zeros(F, 1, dtype=torch.int32, device=hopper_gpu)
    got = summed(op.moe_hopper(x, ids, one.expand(F, 1) / 8, gate_up, down, plan=plan))
    assert torch.equal(got.float(), dequantize(NVFP4(codes, scales, one))[0].T)


@pytest.mark.gpu
def test_nobody_waits_for_a_program_that_does_not_run(hopper_gpu: torch.device) -> None:
    """More programs than fit beside each other: rows of h come from those that draw items."""
    routed, gate_up, down = make_bf16(Case(300, "", zipf=1.0))
    weights, plan = packed(gate_up, down), hopper.TABLE[0].plan
    got = summed(op.moe_hopper(*routed, *weights, plan=plan._replace(programs=8)))
    assert torch.equal(got, summed(op.moe_hopper(*routed, *weights, plan=plan)))
