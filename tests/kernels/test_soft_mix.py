"""The mean embedding of rows, over few tokens or over all, against its reference."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_kernels.lm_head.reference import STRIP, tops
from diffusiongemma_kernels.lm_head.types import Reading
from diffusiongemma_kernels.row_stats import reference as row_stats
from diffusiongemma_kernels.soft_mix import op, reference
from diffusiongemma_kernels.soft_mix._config import DROPPED, LEAST, Config

SMALL = Config(16, 32, 64, 3, 4, 2)
SCALE = 7.0


class Case(NamedTuple):
    vocab: int
    hidden: int
    spreads: tuple[float, ...]  # of the logits of each row
    why: str
    softcap: float | None = 30.0
    limit: int = 64


CASES = [
    Case(100, 32, (), "empty step"),
    Case(1, 8, (1.0,), "one token"),
    Case(1000, 48, (12.0, 10.0), "peaked: no row needs the whole vocabulary", limit=256),
    Case(1000, 48, (0.1, 0.5), "flat: both do"),
    Case(1500, 600, (0.1, 40.0, 0.2), "a batch of both, rows in between", None),
    Case(5000, 32, (20.0,), "more strips than fit one step, and none that is whole", limit=1024),
]


def make(
    case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32, lead: float = 0.0
):
    """lead: how far every row's token 7 is above the others."""
    g = torch.Generator(device).manual_seed(case.vocab)
    R, V = len(case.spreads), case.vocab
    spread = torch.tensor(case.spreads, device=device)[:, None]
    logits = (torch.randn(R, V, generator=g, device=device) * spread).to(dtype)
    logits[:, min(7, V - 1)] += lead
    weight = torch.randn(V, case.hidden, generator=g, device=device).to(dtype)
    temperature = torch.linspace(0.4, 0.8, R, device=device)
    if R > 1:
        temperature[-1] = 0.0  # as 1
    ints = torch.arange(R, device=device)
    stats = row_stats.row_stats(logits, temperature, ints, ints, softcap=case.softcap)
    return Reading(logits, tops(logits, STRIP), STRIP, stats), temperature, weight


def check(got, reading: Reading, temperature, weight, softcap) -> None:
    """Within the bound that the docstring gives, and the rounding of inputs and output."""
    want = reference.soft_mix(
        reading.logits, temperature, reading.stats.logsumexp, weight, softcap=softcap, scale=SCALE
    ).double()
    assert torch.isfinite(got).all()
    longest = SCALE * weight.double().norm(dim=1).max()
    rounding = 2 * torch.finfo(weight.dtype).eps
    error = (got.double() - want).norm(dim=1)
    assert (error <= (DROPPED + 2e-5) * longest + rounding * want.norm(dim=1)).all(), error


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_triton(case: Case, device: str) -> None:
    reading, temperature, weight = make(case, device)
    mine = reading._replace(logits=reading.logits.clone())
    got = op.soft_mix_triton(
        mine, temperature, weight, softcap=case.softcap, scale=SCALE, config=SMALL,
        limit=case.limit,
    )  # fmt: skip
    assert got.shape == (len(case.spreads), case.hidden)
    if case.spreads:
        check(got, reading, temperature, weight, case.softcap)
        if case.why.startswith("peaked"):
            assert torch.equal(mine.logits, reading.logits), "a row was made dense for nothing"
            exact = reference.soft_mix(
                reading.logits, temperature, reading.stats.logsumexp, weight,
                softcap=case.softcap, scale=SCALE,
            )  # fmt: skip
            assert not torch.equal(got, exact), "nothing was left out"


def test_torch_drops_nothing() -> None:
    reading, temperature, weight = make(CASES[3])
    got = op.soft_mix(reading, temperature, weight, softcap=30.0, scale=SCALE)
    want = reference.soft_mix(
        reading.logits, temperature, reading.stats.logsumexp, weight, softcap=30.0, scale=SCALE
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_row_depends_on_no_other(device: str) -> None:
    """Which product it takes included: the flat row in the middle changes places in `order`."""
    reading, temperature, weight = make(Case(500, 40, (0.1, 0.3, 40.0), "", None), device)

    def run(rows: slice) -> torch.Tensor:
        stats = type(reading.stats)(*(x[rows] for x in reading.stats))
        part = Reading(reading.logits[rows].clone(), reading.tops[rows], STRIP, stats)
        return op.soft_mix_triton(
            part, temperature[rows], weight, scale=SCALE, config=SMALL, limit=64
        )

    whole = run(slice(0, 3))
    for r in (1, 2):
        assert torch.equal(run(slice(r, r + 1))[0], whole[r])


def dense_rows(reading: Reading, temperature, weight, softcap, limit: int) -> list[bool]:
    """Which rows take the whole vocabulary: their logits are written over."""
    mine = reading._replace(logits=reading.logits.clone())
    got = op.soft_mix_triton(
        mine, temperature, weight, softcap=softcap, scale=SCALE, config=SMALL, limit=limit
    )
    check(got, reading, temperature, weight, softcap)
    return (mine.logits != reading.logits).any(1).tolist()


def test_rows_that_must_lose_too_much(device: str) -> None:
    """Seen by the strips' tops alone, exactly where LIMIT tokens cannot be enough.

    The tops lie, of a row that is sure: to walk through its tokens would find that one suffices.
    """
    limit, level = 64, LEAST * 16**2
    most = limit + int(DROPPED / level)
    logits = torch.full((3, 200 * STRIP), -40.0, device=device)
    logits[:, 5] = 0.0
    ones = torch.ones(3, device=device)
    stats = row_stats.row_stats(logits, ones, ones.long(), ones.long())
    highest = tops(logits, STRIP)
    for row, strips in enumerate((limit, most, most + 1)):
        highest[row, 1:strips] = torch.tensor(1.001 * level, device=device).log()
    weight = torch.randn(logits.shape[1], 16, device=device)
    reading = Reading(logits, highest, STRIP, stats)
    assert dense_rows(reading, ones, weight, None, limit) == [False, False, True]


def test_a_tail_that_may_just_be_lost(device: str) -> None:
    """More than LIMIT tokens at a level are no reason yet: here up to 125 do not matter."""
    limit, low, tails = 64, 1.02 * LEAST * 16, (60, 125, 126, 250)
    p = torch.full((len(tails), 256 * STRIP), 1e-12, dtype=torch.float64, device=device)
    for row, tail in enumerate(tails):
        p[row, 3 : tail * STRIP : STRIP] = low
        p[row, 5] = 1 - low * tail
    logits, ones = p.log().float(), torch.ones(len(tails), device=device)
    stats = row_stats.row_stats(logits, ones, ones.long(), ones.long())
    reading = Reading(logits, tops(logits, STRIP), STRIP, stats)
    weight = torch.randn(logits.shape[1], 16, device=device)
    assert dense_rows(reading, ones, weight, None, limit) == [False, False, True, True]


def levelled(p: torch.Tensor, limit: int) -> tuple[bool, bool]:
    """p [V] f64: whether a row that walks all levels finds too little, and that narrowly."""
    for level in (LEAST * 16**i for i in range(5)):
        mine = p[p >= level]
        if len(mine) <= limit:
            return bool(mine.sum() < 1 - DROPPED), bool((mine.sum() - 1 + DROPPED).abs() < 3e-5)
    return True, False


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_no_row_is_given_up_too_early(softcap: float | None, device: str) -> None:
    """What the tops tell agrees with the tokens, however hot a row is, and often saves the walk."""
    rows, limit = 96, 64
    case = Case(8192, 16, (3.0,) * rows, "", softcap, limit)
    (logits, *_), _, weight = make(case, device)
    logits[:, 7] = torch.linspace(8, 25, 8, device=device).repeat(rows // 8)
    temperature = torch.logspace(-1, 0.5, rows, device=device)
    ints = torch.arange(rows, device=device)
    stats = row_stats.row_stats(logits, temperature, ints, ints, softcap=softcap)
    reading = Reading(logits, tops(logits, STRIP), STRIP, stats)
    dense = dense_rows(reading, temperature, weight, softcap, limit)
    y = logits.double()
    y = (y if softcap is None else softcap * torch.tanh(y / softcap)) / temperature[:, None]
    seen = 0
    for p, taken in zip(y.softmax(1), dense, strict=True):
        whole, narrowly = levelled(p, limit)
        assert taken == whole or narrowly
        strips = p.unflatten(0, (-1, STRIP)).amax(1)
        levels = (LEAST * 16**i for i in range(5))
        seen += any((int((strips >= q).sum()) - limit) * q > DROPPED for q in levels)
    assert 8 < seen <= sum(dense) < rows - 8, "rows of every kind"


def test_nan_stays_nan(device: str) -> None:
    """A row of NaN keeps nothing, so it takes the whole vocabulary."""
    reading, temperature, weight = make(Case(300, 16, (40.0, 40.0), ""), device)
    reading.logits[0], reading.tops[0] = torch.nan, torch.nan
    reading.stats.logsumexp[0] = torch.nan
    got = op.soft_mix_triton(
        reading, temperature, weight, softcap=30.0, scale=SCALE, config=SMALL, limit=64
    )
    assert got[0].isnan().all() and got[1].isfinite().all()


def test_the_bound_is_tight(device: str) -> None:
    """A row that may just lose all but one token, whose loss points one way."""
    tail = 2100  # each below the least probability that is kept
    p = torch.full((1, 1 + tail), DROPPED * 0.999 / tail, device=device)
    p[0, 0] = 1 - p[0, 1:].sum()
    weight = torch.zeros(1 + tail, 4, device=device)
    weight[0, 0], weight[1:, 1] = 1.0, 1.0
    ones = torch.ones(1, device=device)
    stats = row_stats.row_stats(p.log(), ones, ones.long(), ones.long())
    reading = Reading(p.log(), tops(p.log(), STRIP), STRIP, stats)
    got = op.soft_mix_triton(reading, ones, weight, scale=1.0, config=SMALL, limit=64)
    want = reference.soft_mix(reading.logits, ones, stats.logsumexp, weight, scale=1.0)
    error = (got - want).norm()
    assert 0.99 * DROPPED < error <= DROPPED


@pytest.mark.gpu
@pytest.mark.parametrize("spread, lead", [(0.3, 0.0), (2.0, 25.0), (5.0, 0.0), (12.0, 0.0)])
@pytest.mark.parametrize("rows", [256, 1024])
def test_real_shape(rows: int, spread: float, lead: float) -> None:
    case = Case(262144, 2816, (spread,) * (rows - 3) + (0.1, 30.0, 8.0), "")
    reading, temperature, weight = make(case, "cuda", torch.bfloat16, lead)
    mine = reading._replace(logits=reading.logits.clone())
    got = op.soft_mix(mine, temperature, weight, softcap=30.0, scale=SCALE)
    for r in range(0, rows, 64):
        s = slice(r, r + 64)
        stats = type(reading.stats)(*(x[s] for x in reading.stats))
        part = Reading(reading.logits[s], reading.tops[s], STRIP, stats)
        check(got[s], part, temperature[s], weight, 30.0)


@pytest.mark.gpu
def test_a_graph_replays_other_rows() -> None:
    """One capture serves peaked and flat rows: which product a row takes is read on the device."""
    def case(spread: float, lead: float):
        return make(Case(262144, 2816, (spread,) * 256, ""), "cuda", torch.bfloat16, lead)

    peaked, flat = case(2.0, 25.0), case(0.3, 0.0)
    fixed, temperature, weight = case(2.0, 25.0)
    op.soft_mix(fixed, temperature, weight, softcap=30.0, scale=SCALE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op.soft_mix(fixed, temperature, weight, softcap=30.0, scale=SCALE)
    for reading, _, _ in (peaked, flat, peaked):
        fixed.logits.copy_(reading.logits)
        fixed.tops.copy_(reading.tops)
        fixed.stats.logsumexp.copy_(reading.stats.logsumexp)
        graph.replay()
        mine = reading._replace(logits=reading.logits.clone())
        eager = op.soft_mix(mine, temperature, weight, softcap=30.0, scale=SCALE)
        assert torch.equal(out, eager)
        for r in range(0, 256, 64):
            s = slice(r, r + 64)
            stats = type(reading.stats)(*(x[s] for x in reading.stats))
            part = Reading(reading.logits[s], reading.tops[s], STRIP, stats)
            check(out[s], part, temperature[s], weight, 30.0)
