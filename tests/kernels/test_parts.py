"""A vocabulary in parts says of its rows what it says whole, however many parts there are."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_kernels.lm_head import op as lm_head
from diffusiongemma_kernels.lm_head._config import Config as Tiles
from diffusiongemma_kernels.lm_head.reference import STRIP, tops
from diffusiongemma_kernels.lm_head.types import Reading
from diffusiongemma_kernels.row_stats import op, parts, reference
from diffusiongemma_kernels.row_stats.types import RowStats
from diffusiongemma_kernels.soft_mix import op as soft_mix
from diffusiongemma_kernels.soft_mix import reference as mean
from diffusiongemma_kernels.soft_mix._config import DROPPED, Config
from diffusiongemma_kernels.soft_mix.types import Part
from diffusiongemma_kernels.testing import ROW_STATS, assert_close

CAP, TEMPERATURES = 30.0, (0.0, 0.4, 0.8, 1.0, 5.0)
MIX, READ = Config(16, 32, 64, 3, 4, 2), Tiles(16, 256, 32, 4, 2)


class Case(NamedTuple):
    vocab: int
    spread: float
    why: str


CASES = [
    Case(512, 4.0, "a power of two"),
    Case(1001, 0.01, "flat, nothing divides"),
    Case(300, 60.0, "peaked past the cap: all of the probability lies in one part"),
]


def make(vocab: int, spread: float, rows: int = 40):
    g = torch.Generator().manual_seed(vocab)
    logits = torch.randn(rows, vocab, generator=g) * spread
    temperature = torch.tensor([TEMPERATURES[r % 5] for r in range(rows)])
    seed = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=g)
    counter = torch.randint(0, 2**45, (rows,), generator=g)
    return logits, temperature, seed, counter


def cuts(vocab: int, ranks: int) -> list[slice]:
    each = -(-vocab // ranks)
    return [slice(i * each, min(vocab, (i + 1) * each)) for i in range(ranks)]


def merged(run, logits, rest, where: list[slice], **kw) -> RowStats:
    each = [run(logits[:, cut], *rest, softcap=CAP, first=cut.start, **kw) for cut in where]
    return parts.merge(torch.stack([parts.pack(one) for one in each]))


def check(got: RowStats, want: RowStats) -> None:
    assert torch.equal(got.argmax, want.argmax) and torch.equal(got.sample, want.sample)
    for name in ("entropy", "max", "logsumexp", "score"):
        assert_close(getattr(got, name), getattr(want, name), ROW_STATS)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_statistics(case: Case, ranks: int) -> None:
    logits, *rest = make(case.vocab, case.spread)
    want = op.row_stats(logits, *rest, softcap=CAP)
    where = cuts(case.vocab, ranks)
    check(merged(op.row_stats, logits, rest, where), want)
    check(merged(reference.row_stats, logits, rest, where), want)
    # Whoever comes first: every rank may begin with its own.
    check(merged(op.row_stats, logits, rest, where[::-1]), want)


def test_of_equals_the_lowest_token_is_chosen() -> None:
    logits, temperature, seed, counter = make(64, 0.0)
    rest = torch.zeros_like(temperature), seed, counter
    got = merged(op.row_stats, logits, rest, cuts(64, 4)[::-1])
    assert got.argmax.tolist() == got.sample.tolist() == [0] * len(logits)


def test_nan_chooses_a_token_and_stays_nan() -> None:
    logits, *rest = make(64, 1.0)
    logits[3, 40] = torch.nan
    got = merged(op.row_stats, logits, rest, cuts(64, 4))
    assert got.entropy[3].isnan() and got.logsumexp[3].isnan()
    assert 0 <= got.argmax[3] < 64 and 0 <= got.sample[3] < 64
    assert not got.entropy[[0, 1, 2, *range(4, 40)]].isnan().any()


def test_a_part_without_any_probability_adds_none() -> None:
    logits, *rest = make(64, 1.0)
    logits[:, 32:] = -torch.inf
    each = [op.row_stats(logits[:, cut], *rest, first=cut.start) for cut in cuts(64, 2)]
    each[1] = each[1]._replace(logsumexp=torch.full_like(each[1].logsumexp, -torch.inf))
    got = parts.merge(torch.stack([parts.pack(one) for one in each]))
    check(got, op.row_stats(logits, *rest))


@pytest.mark.parametrize("vocab", [8192, 9001])
def test_triton(vocab: int, device: str) -> None:
    """The kernels' parts begin at whole groups of tokens, and draw from the same noise."""
    args = [x.to(device) for x in make(vocab, 4.0, rows=5)]
    where = [slice(0, 4096), slice(4096, vocab)]
    want = op.row_stats(*(x.cpu() for x in args), softcap=CAP)
    got = merged(op.row_stats_triton, args[0], args[1:], where)
    check(RowStats(*(x.cpu() for x in got)), want)
    with pytest.raises(AssertionError, match="first=64"):
        op.row_stats_triton(*args, first=64)


def test_lm_head_triton(device: str) -> None:
    vocab, hidden = 5000, 32
    _, *rest = (x.to(device) for x in make(vocab, 1.0, rows=3))
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(3, hidden, generator=g).to(device)
    weight = torch.randn(vocab, hidden, generator=g).to(device)
    each = [
        lm_head.lm_head_triton(
            rows, weight[cut], *rest, softcap=CAP, first=cut.start, config=READ
        )
        for cut in (slice(0, 4096), slice(4096, vocab))
    ]
    logits = torch.cat([one.logits for one in each], 1)
    got = parts.merge(torch.stack([parts.pack(one.stats) for one in each]))
    check(got, reference.row_stats(logits, *rest, softcap=CAP))


@pytest.mark.parametrize("ranks", [2, 5])
def test_soft_mix(ranks: int, device: str) -> None:
    """The parts' means sum up within the bound; a sure row costs no part its whole vocabulary."""
    vocab, hidden, scale = 1000, 48, 7.0
    g = torch.Generator(device).manual_seed(0)
    spread = torch.tensor([12.0, 10.0, 0.1, 0.0], device=device)[:, None]
    logits = torch.randn(4, vocab, generator=g, device=device) * spread
    logits[3, 7] = 25.0  # sure: every other part is flat, and has next to nothing
    weight = torch.randn(vocab, hidden, generator=g, device=device)
    heat, ints = torch.linspace(0.4, 0.8, 4, device=device), torch.arange(4, device=device)
    whole = reference.row_stats(logits, heat, ints, ints, softcap=CAP).logsumexp
    want = mean.soft_mix(logits, heat, whole, weight, softcap=CAP, scale=scale)
    both = {"torch": torch.zeros_like(want), "triton": torch.zeros_like(want)}
    for cut in cuts(vocab, ranks):
        own = logits[:, cut].contiguous()
        stats = reference.row_stats(own, heat, ints, ints, softcap=CAP, first=cut.start)
        reading = Reading(own, tops(own, STRIP), STRIP, stats)
        named = dict(softcap=CAP, scale=scale, part=Part(whole, ranks))
        both["torch"] += soft_mix.soft_mix_torch(reading, heat, weight[cut], **named)
        before = own.clone()
        both["triton"] += soft_mix.soft_mix_triton(
            reading, heat, weight[cut], **named, config=MIX, limit=256
        )
        same = (own == before).all(1).tolist()
        assert same == [True, True, cut.stop - cut.start <= 256, True], "made dense for nothing"
    assert_close(both["torch"], want, (1e-4, 1e-4))
    longest = scale * weight.norm(dim=1).max()
    assert ((both["triton"] - want).norm(dim=1) <= (DROPPED + 2e-5) * longest).all()
