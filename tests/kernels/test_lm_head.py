"""The product with the embedding and its row statistics against their reference."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_kernels import noise
from diffusiongemma_kernels.lm_head import _config, hopper, op, reference
from diffusiongemma_kernels.lm_head._config import Config
from diffusiongemma_kernels.lm_head.types import Reading
from diffusiongemma_kernels.row_stats import reference as row_stats
from diffusiongemma_kernels.row_stats.types import RowStats
from diffusiongemma_kernels.testing import CHOICE, ROW_STATS, assert_close

# The interpreter takes its time a program; a GPU has no shared memory for such tiles of fp32.
SMALL = Config(16, 64 if torch.cuda.is_available() else 256, 32, 4, 2)


class Case(NamedTuple):
    rows: int
    vocab: int
    hidden: int
    why: str
    softcap: float | None = 30.0
    spread: float = 4.0


CASES = [
    Case(0, 100, 32, "empty step"),
    Case(1, 1, 32, "one token"),
    Case(5, 300, 48, "less than a tile, and a step of columns that is not whole"),
    Case(2, 5000, 32, "a group and a bit", softcap=None),
    Case(17, 500, 32, "a second block of rows, flat", spread=0.01),
    Case(4, 1100, 32, "peaked past the cap", spread=60.0),
]
REAL = [
    Case(256, 262144, 2816, "one canvas"),
    Case(1024, 262144, 2816, "four canvases"),
    Case(300, 262144, 2816, "rows that fill no block, flat", spread=0.3),
    Case(130, 70001, 2816, "nothing divides", softcap=None),
]
TEMPERATURES = (0.0, 0.4, 0.8, 1.0, 5.0)


def make(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32):
    g = torch.Generator(device).manual_seed(case.vocab)
    R, H = case.rows, case.hidden
    padded = torch.randn(R, H + 8, generator=g, device=device)  # rows lie apart
    hidden = (padded * (case.spread / H**0.5)).to(dtype)[:, :H]
    weight = torch.randn(case.vocab, H, generator=g, device=device).to(dtype)
    temperature = torch.tensor([TEMPERATURES[r % 5] for r in range(R)], device=device)
    seed = torch.randint(-(2**63), 2**63 - 1, (R,), generator=g, device=device)
    counter = torch.randint(0, 2**45, (R,), generator=g, device=device)
    return hidden, weight, temperature, seed, counter


def check(got, args, case: Case) -> None:
    logits, stats = got.logits, got.stats
    hidden, weight, temperature, seed, counter = args
    exact = hidden.float() @ weight.float().T
    rounding = torch.finfo(logits.dtype).eps if logits.dtype != torch.float32 else 1e-5
    assert_close(logits, exact, (rounding, rounding * case.spread))
    assert torch.equal(got.tops, reference.tops(logits, got.strip))
    # The statistics are those of the logits that came out.
    want = row_stats.row_stats(logits, temperature, seed, counter, softcap=case.softcap)
    for name in ("entropy", "max", "logsumexp", "score"):
        assert_close(getattr(stats, name), getattr(want, name), ROW_STATS)
    assert torch.equal(stats.argmax, logits.float().argmax(1)), "the lowest of the highest logits"
    z = logits.float()
    y = z if case.softcap is None else case.softcap * torch.tanh(z / case.softcap)
    t = temperature[:, None]
    y = torch.where(t > 0, y / t, y)
    noisy = y + torch.where(t > 0, noise.gumbel(noise.token_words(seed, counter, 0, case.vocab)), 0)
    chosen = noisy.gather(1, stats.sample[:, None])[:, 0]
    assert (chosen >= noisy.amax(1) - CHOICE).all()
    assert (stats.sample == want.sample).float().mean() >= 0.95


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_triton(case: Case, device: str) -> None:
    args = make(case, device)
    got = op.lm_head_triton(*args, softcap=case.softcap, config=SMALL)
    if case.rows:
        check(got, args, case)
    else:
        assert got.logits.shape == (0, 100) and got.stats.sample.shape == (0,)


def test_torch_and_its_reference_agree() -> None:
    case = CASES[2]
    args = make(case)
    check(op.lm_head(*args, softcap=case.softcap), args, case)
    check(reference.lm_head(*args, softcap=case.softcap), args, case)


def test_equals_have_the_lowest_token_wherever_they_lie(device: str) -> None:
    """Token 300 is in a later tile than token 1029: tiles are four strips of a group."""
    weight = torch.zeros(1030, 32, device=device)
    weight[[300, 700, 1029], 0] = 3.0
    hidden = torch.ones(1, 32, device=device)
    ints = torch.zeros(1, dtype=torch.int64, device=device)
    stats = op.lm_head_triton(hidden, weight, ints.float(), ints, ints, config=SMALL).stats
    assert stats.argmax.tolist() == stats.sample.tolist() == [300]
    assert stats.max.tolist() == [3.0]


def test_a_row_depends_on_no_other(device: str) -> None:
    case = Case(17, 200, 32, "")
    args = make(case, device)
    logits, _, _, stats = op.lm_head_triton(*args, softcap=30.0, config=SMALL)
    mine = (args[0][4:5], args[1], *(x[4:5] for x in args[2:]))
    alone, _, _, its = op.lm_head_triton(*mine, softcap=30.0, config=SMALL)
    assert torch.equal(alone[0], logits[4])
    for mine, all_rows in zip(its, stats, strict=True):
        assert torch.equal(mine[0], all_rows[4])


def test_tiles_cover_the_vocabulary_once() -> None:
    for vocab, strip in ((1, 64), (64, 64), (65, 64), (4097, 32), (262144, 64), (70001, 32)):
        seen = torch.zeros(vocab, dtype=torch.int64)
        for tile in range(_config.tiles(vocab, strip)):
            first = tile // (1024 // strip) * 4096 + tile % (1024 // strip) * strip
            assert first < vocab, "a tile without a token"
            for start in range(first, first + 4096, 1024):
                seen[start : start + strip] += 1
        assert (seen == 1).all(), (vocab, strip)


GROUPS = [
    Case(1, 4096, 64, "one row and a group"),
    Case(130, 8192, 80, "a second block of rows, and a stage of columns that is not whole"),
    Case(257, 12288, 128, "peaked, without a cap", softcap=None, spread=60.0),
    Case(70, 4096 * 150, 64, "flat, more tiles than processors", spread=0.01),
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", GROUPS, ids=lambda c: c.why)
def test_hopper(case: Case, hopper_gpu: torch.device) -> None:
    args = make(case, "cuda", torch.bfloat16)
    assert hopper.runs(*args[:2])
    got = op.lm_head(*args, softcap=case.softcap)
    check(got, args, case)
    assert torch.equal(got.logits, op.lm_head_triton(*args, softcap=case.softcap).logits)
    mine = (args[0][-1:], args[1], *(x[-1:] for x in args[2:]))
    alone = op.lm_head(*mine, softcap=case.softcap)
    assert torch.equal(alone.logits[0], got.logits[-1])
    for its, all_rows in zip(alone.stats, got.stats, strict=True):
        assert torch.equal(its[0], all_rows[-1]), "a row depends on others"


def test_its_tiles_fit_a_processor() -> None:
    stages = hopper.STAGES * (hopper.ROWS + 4 * hopper.STRIP) * hopper.COLUMNS * 2
    assert stages + hopper.ROWS * 4 * hopper.STRIP * 2 <= 226 * 1024
    launch, multiplying, folding, fetching = hopper.REGISTERS
    assert 512 * launch <= 65536 and 2 * multiplying + folding + fetching <= 4 * launch


def test_what_hopper_leaves_to_triton() -> None:
    """A tensor without a GPU counts as Hopper's."""
    whole = torch.zeros(8192, 64, dtype=torch.bfloat16)
    rows = whole[:3]
    assert hopper.runs(rows, whole)
    assert not hopper.runs(rows, whole[:5000]) and not hopper.runs(rows.half(), whole.half())
    assert not hopper.runs(whole.flatten()[: 3 * 60].view(3, 60), whole[:, :60])
    assert [hopper.runs_on(gpu) for gpu in ((8, 0), (9, 0), (10, 0))] == [False, True, False]


@pytest.mark.gpu
@pytest.mark.parametrize("run", [op.lm_head_triton, op.lm_head], ids=["triton", "op"])
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case, run) -> None:
    args = make(case, "cuda", torch.bfloat16)
    got = run(*args, softcap=case.softcap)
    for r in range(0, case.rows, 64):  # the reference is wide
        rows = slice(r, r + 64)
        part = (args[0][rows], args[1], *(x[rows] for x in args[2:]))
        stats = RowStats(*(x[rows] for x in got.stats))
        check(Reading(got.logits[rows], got.tops[rows], got.strip, stats), part, case)
