"""W4A4 experts: its rounding exactly, its products decoded instead of by FP4 tensor cores."""

import pytest
import torch

from diffusiongemma_kernels.moe_gemm.routed import summed
from diffusiongemma_kernels.moe_gemm.testing import Case, worst_row
from diffusiongemma_kernels.moe_gemm.testing import make as make_layer
from diffusiongemma_kernels.moe_gemm_fp4 import _config, op, reference
from diffusiongemma_kernels.moe_gemm_fp4._config import Config
from diffusiongemma_kernels.moe_gemm_fp4.types import Fp4, Rows
from diffusiongemma_kernels.moe_sort.op import moe_sort

CASES = [
    Case(0, "empty step"),
    Case(1, "one row, experts without rows"),
    Case(17, "nothing divides", 4, 3, 144, 80),
    Case(256, "one canvas"),
    Case(300, "two tiles an expert", 8),
]
SMALL = Config(16, 128, 64, 4, 2)
# The kernel's h differs from the reference's in the last bit, which moves a few codes of e2m1.
WHOLE_LAYER = 5e-2


@pytest.fixture(autouse=True)
def _interpreted(device: str) -> None:
    if device == "cuda":
        pytest.skip("float32 is for the interpreter; FP4 tensor cores have not been at hand")


def make(case: Case) -> tuple:
    routed, gate_up, down = make_layer(case)
    spread = torch.linspace(0.8, 1.2, case.experts)
    weights = (
        Fp4(*gate_up, input_scale=spread * 4 / (6 * 448)),
        Fp4(*down, input_scale=spread * 30 / (6 * 448)),
    )
    return routed, weights


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_layer(case: Case) -> None:
    routed, weights = make(case)
    got = summed(op.moe_fp4(*routed, *weights))
    some = slice(0, case.tokens, 10)
    want = reference.moe(*(part[some] for part in routed), *weights)
    assert worst_row(got[some], want) < WHOLE_LAYER
    assert got.isfinite().all()


def test_both_products_are_exact() -> None:
    """On the codes that the kernel itself wrote, so that nothing is rounded twice."""
    (x, ids, share), (gate_up, down) = make(Case(17, "", 4, 3, 144, 80))
    ordered = moe_sort(ids, experts=4, block=16)
    expert = ids.flatten()[ordered.rows.long()]

    def product(rows: Rows, weights: Fp4) -> torch.Tensor:
        real = reference.dequantise(*rows, weights.input_scale[expert])
        matrices = torch.stack(
            [
                reference.dequantise(c, s, g.expand(len(c)))
                for c, s, g in zip(*weights[:3], strict=True)
            ]
        )
        return torch.einsum("rc,rmc->rm", real, matrices[expert])

    rows = op.quantise(x, ordered, gate_up.input_scale, 3, SMALL)
    h = op.launch_gate_up(rows, ordered, gate_up, x.dtype, SMALL)
    gate, up = product(rows, gate_up).chunk(2, 1)
    assert worst_row(h, torch.nn.functional.gelu(gate, approximate="tanh") * up) < 3e-6
    rows = op.quantise(h, ordered, down.input_scale, 0, SMALL)
    slots = op.launch_down(rows, ordered, share, down, x.dtype, SMALL)
    want = product(rows, down) * share.flatten()[ordered.rows.long(), None]
    assert worst_row(slots[ordered.rows.long()], want) < 3e-6


def test_quantise_has_the_references_bits() -> None:
    case = Case(17, "", 4, 3, 272, 80)
    (x, ids, _), (gate_up, _) = make(case)
    x[0, :16] = 0  # an empty block
    x[1] *= 1e4  # past the largest scale
    x[2] *= 1e-5  # below the smallest
    x[3] = 0.25 * torch.arange(272).remainder(29) - 3.5  # ties
    ordered = moe_sort(ids, experts=4, block=16)
    got = op.quantise(x, ordered, gate_up.input_scale, 3, SMALL)
    rows = ordered.rows.long()
    want = reference.quantise(x[rows // 3], gate_up.input_scale[ids.flatten()[rows].long()])
    assert torch.equal(got.scales, want.scales)
    assert torch.equal(got.codes, want.codes)


def test_rounding_to_check_by_hand() -> None:
    halfway = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    row = torch.tensor([halfway + [6.0] + [-v for v in halfway] + [-6.0]])
    rows = reference.quantise(row, torch.ones(1))
    assert rows.scales.view(torch.float8_e4m3fn).float().tolist() == [[1.0]]
    values = reference.dequantise(*rows, torch.ones(1))[0, :8]
    assert values.tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]


def test_other_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match="sm_100 or sm_120, not sm_90"):
        _config.choose(16, (9, 0))
    assert len({_config.choose(r, (12, 0), True) for r in (0.1, 20, 4000)}) == 1
