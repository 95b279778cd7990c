"""Attention in Gluon: Triton's interpreter does not run it, so a Hopper GPU is needed."""

import pytest
import torch

from diffusiongemma_kernels.attention import _config, hopper, op, reference, testing
from diffusiongemma_kernels.attention.testing import Case, attend, check, rows_of
from diffusiongemma_kernels.paged import FP8
from diffusiongemma_kernels.testing import Heads, Paged, Request

BF16 = torch.bfloat16
LOCAL, GLOBAL = Heads(16, 8, 256), Heads(16, 2, 512)
SHOWN = ((1, 290, 360), (3, 10, 120))
MIXED = (
    Request(256, 500),
    Request(77, 300, canvas=False),
    Request(1, 1500, canvas=False),
    Request(130, 0, canvas=False),
    Request(100, 0),
)
CASES = [
    Case((Request(256, 512),), LOCAL, "one canvas, local", window=1024, page=64),
    Case((Request(256, 512),), GLOBAL, "one canvas, global", page=64),
    Case((Request(256, 256),) * 9, LOCAL, "more tiles than processors", window=1024, page=64),
    Case(MIXED, LOCAL, "mixed, local", window=1024, page=16),
    Case(MIXED, LOCAL, "mixed, a window shorter than a tile", window=30, page=32),
    Case(MIXED, GLOBAL, "mixed, global", page=16),
    Case(MIXED, GLOBAL, "padded rows and requests", page=32, padding=(140, 3)),
    Case((Request(1, 0, False),), LOCAL, "one row", window=1024, page=64),
    Case((Request(1, 3000),), GLOBAL, "one row behind many", page=64),
    Case((Request(700, 900, False),), Heads(8, 8, 256), "no grouping", window=256, page=64),
    Case((Request(40, 21), Request(2, 5, False)), Heads(16, 1, 512), "group of sixteen", page=64),
    Case((Request(33, 70),), Heads(6, 2, 256), "group of three", page=64),
    Case(MIXED, LOCAL, "images, local", window=64, images=SHOWN, page=64),
    Case(MIXED, GLOBAL, "images, global", images=SHOWN, padding=(140, 3), page=64),
]
CACHES = pytest.mark.parametrize("kv_dtype", [BF16, FP8], ids=["bf16", "fp8"])


def test_every_plan_fits() -> None:
    for (head_dim, narrow), plan in hopper.PLANS.items():
        warps = 8 + hopper.FETCHING
        registers = 8 * plan.attending + hopper.FETCHING * plan.fetching
        assert registers <= warps * hopper.LAUNCH and warps * 32 * hopper.LAUNCH <= 65536
        pieces = 2 * head_dim // 256 + plan.stages + (1 if narrow else 0)
        assert pieces * 64 * 256 * 2 + 1024 <= _config.LARGEST
    one = _config.Shape(256, 2, 8, 2, 256, 2, 1279)
    assert hopper.choose(one, BF16, 132).splits == 4
    assert hopper.choose(one._replace(tokens=2048), FP8, 132).splits == 1
    assert hopper.choose(one, BF16, 132, batch_invariant=True).splits == 1
    assert hopper.choose(_config.Shape(256, 2, 2, 8, 512, 2, 768), BF16, 132).splits == 2


def make(case: Case, kv_dtype: torch.dtype) -> Paged:
    return testing.make(case._replace(dtype=BF16, kv_dtype=kv_dtype), "cuda")


@pytest.mark.gpu
@CACHES
@pytest.mark.parametrize("splits", [None, 1, 2, 16])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_hopper(
    case: Case, splits: int | None, kv_dtype: torch.dtype, hopper_gpu: torch.device
) -> None:
    paged = make(case, kv_dtype)
    assert hopper.runs((9, 0), paged.q, paged.kv)
    config = None
    if splits is not None:
        shape = _config.Shape(1, 1, case.heads.kv, 1, case.heads.dim, 2, 1)
        config = hopper.choose(shape, kv_dtype, 132)._replace(splits=splits, min_tiles=1)
    got = attend(op.paged_attention_hopper, paged, case.window, config=config)
    want = attend(reference.paged_attention, paged, case.window)
    check(got, want, rows_of(case))


@pytest.mark.gpu
@CACHES
@pytest.mark.parametrize("heads", [LOCAL, GLOBAL], ids=["local", "global"])
def test_batch_invariant(heads: Heads, kv_dtype: torch.dtype, hopper_gpu: torch.device) -> None:
    """Whoever else is in the batch, and whether anyone shows an image."""
    paged = make(Case(MIXED, heads, "", page=16), kv_dtype)
    shown = make(Case(MIXED, heads, "", page=16, images=SHOWN), kv_dtype)
    together = attend(op.paged_attention, paged, 256, batch_invariant=True)
    beside = attend(op.paged_attention, shown, 256, batch_invariant=True)
    starts = paged.batch.query_start_loc.tolist()
    for i, request in enumerate(MIXED):
        rows = slice(starts[i], starts[i + 1])
        batch = paged.batch._replace(
            query_start_loc=paged.batch.query_start_loc[i : i + 2] - starts[i],
            seq_lens=paged.batch.seq_lens[i : i + 1],
            block_table=paged.batch.block_table[i : i + 1],
            canvas=paged.batch.canvas[i : i + 1],
            max_query_len=request.query_len,
        )
        alone = attend(
            op.paged_attention, Paged(paged.q[rows], paged.kv, batch), 256, batch_invariant=True
        )
        assert torch.equal(alone, together[rows])
        if i not in [image[0] for image in SHOWN]:
            assert torch.equal(alone, beside[rows])


@pytest.mark.gpu
def test_nan_of_a_request_stays_its_own(hopper_gpu: torch.device) -> None:
    for kv_dtype in (BF16, FP8):
        paged = make(Case(MIXED, LOCAL, "", page=16), kv_dtype)
        want = attend(op.paged_attention_hopper, paged, 0)
        paged.kv.key[paged.batch.block_table[1, 2], 3] = torch.tensor(float("nan")).to(kv_dtype)
        got = attend(op.paged_attention_hopper, paged, 0)
        starts = paged.batch.query_start_loc.tolist()
        sick = slice(starts[1], starts[2])
        assert got[sick].isnan().any(), "an fp8 NaN is still one"
        got[sick] = want[sick]
        assert torch.equal(got, want)
