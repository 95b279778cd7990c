"""Row statistics by Triton and on the CPU against their reference."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_kernels import noise
from diffusiongemma_kernels.row_stats import _config, op, reference
from diffusiongemma_kernels.row_stats._config import Config
from diffusiongemma_kernels.row_stats.types import RowStats
from diffusiongemma_kernels.testing import CHOICE, ROW_STATS, assert_close


class Case(NamedTuple):
    rows: int
    vocab: int
    why: str
    softcap: float | None = 30.0
    dtype: torch.dtype = torch.float32
    spread: float = 4.0


CASES = [
    Case(0, 100, "empty step"),
    Case(1, 1, "one token"),
    Case(1, 5000, "one row"),
    Case(5, 1000, "less than a tile"),
    Case(5, 4096, "exactly a tile", softcap=None),
    Case(5, 9001, "nothing divides"),
    Case(5, 9001, "no softcap", softcap=None),
    Case(5, 9001, "half", dtype=torch.float16),
    Case(5, 9001, "flat", spread=0.01),
    Case(5, 9001, "peaked past the cap", spread=40.0),
]
REAL = [
    Case(256, 262144, "one canvas", dtype=torch.bfloat16),
    Case(256, 262144, "one flat canvas", dtype=torch.bfloat16, spread=0.5),
    Case(3, 262144, "few rows"),
    Case(300, 70001, "nothing divides", softcap=None),
]
TEMPERATURES = (0.0, 0.4, 0.8, 1.0, 5.0)


def make(case: Case, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(case.vocab)
    R = case.rows
    padded = torch.randn(R, case.vocab + 8, generator=g) * case.spread
    logits = padded.to(case.dtype).to(device)[:, : case.vocab]  # rows lie apart, as padded logits
    temperature = torch.tensor([TEMPERATURES[r % 5] for r in range(R)], device=device)
    seed = torch.randint(-(2**63), 2**63 - 1, (R,), generator=g).to(device)
    counter = torch.randint(0, 2**45, (R,), generator=g).to(device)
    return logits, temperature, seed, counter


def check(got: RowStats, want: RowStats, args: tuple[torch.Tensor, ...], case: Case) -> None:
    logits, temperature, seed, counter = args
    for name in ("entropy", "max", "logsumexp", "score"):
        assert_close(getattr(got, name), getattr(want, name), ROW_STATS)
    assert (got.entropy >= 0).all()
    # A choice may differ where two candidates round to the same number.
    z = logits.float()
    y = z if case.softcap is None else case.softcap * torch.tanh(z / case.softcap)
    t = temperature[:, None]
    y = torch.where(t > 0, y / t, y)
    noisy = y + torch.where(t > 0, noise.gumbel(noise.token_words(seed, counter, 0, y.shape[1])), 0)
    for scores, choice in ((y, got.argmax), (noisy, got.sample)):
        chosen = scores.gather(1, choice[:, None])[:, 0]
        assert (chosen >= scores.amax(1) - CHOICE).all()
    agree = (got.sample == want.sample).float().mean() if len(choice) else 1
    assert agree >= 0.95, f"only {agree} of the samples agree"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_triton(case: Case, device: str) -> None:
    args = make(case, device)
    if case.rows:
        want = reference.row_stats(*args, softcap=case.softcap)
        check(op.row_stats_triton(*args, softcap=case.softcap), want, args, case)
    else:
        assert op.row_stats_triton(*args).sample.shape == (0,)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_torch(case: Case) -> None:
    args = make(case)
    if case.rows:
        want = reference.row_stats(*args, softcap=case.softcap)
        check(op.row_stats(*args, softcap=case.softcap), want, args, case)
    else:
        assert op.row_stats(*args).sample.shape == (0,)


@pytest.mark.parametrize("config", [Config(1, 4, 4), Config(2, 2, 4)])
def test_choices_do_not_depend_on_the_split(config: Config, device: str) -> None:
    case = Case(5, 9001, "")
    args = make(case, device)
    one = op.row_stats_triton(*args, softcap=30.0, config=Config(3, 1, 4))
    some = op.row_stats_triton(*args, softcap=30.0, config=config)
    assert torch.equal(one.argmax, some.argmax) and torch.equal(one.sample, some.sample)
    assert_close(some.entropy, one.entropy, ROW_STATS)


def test_a_row_on_the_cpu_is_independent_of_its_batch() -> None:
    args = make(Case(5, 9001, ""))
    whole = op.row_stats(*args, softcap=30.0)
    for r in range(5):
        alone = op.row_stats(*(x[r : r + 1] for x in args), softcap=30.0)
        for mine, theirs in zip(alone, whole, strict=True):
            assert torch.equal(mine, theirs[r : r + 1])


@pytest.mark.parametrize("function", [op.row_stats_triton, op.row_stats_torch])
def test_numbers_to_check_by_hand(function, device: str) -> None:
    where = device if function is op.row_stats_triton else "cpu"
    minus = float("-inf")
    logits = torch.tensor(
        [[1.0] * 8, [minus] * 7 + [2.0], [3.0, 0, 9, 9, 0, 0, 9, 1]], device=where
    )
    ints = torch.arange(3, device=where)
    for temperature in (0.0, 0.5):
        t = torch.full((3,), temperature, device=where)
        stats = function(logits, t, ints, ints)
        assert stats.argmax.tolist() == [0, 7, 2]  # the lowest of equals
        if temperature == 0.0:
            assert stats.sample.tolist() == [0, 7, 2]
        assert stats.sample[1] == 7
        expected = torch.tensor([8.0, 1.0]).log()
        assert_close(stats.entropy[:2].cpu(), expected, ROW_STATS)
        assert stats.max.tolist() == pytest.approx([x / (temperature or 1.0) for x in (1, 2, 9)])


def test_samples_follow_the_distribution() -> None:
    R = 20000
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5]).repeat(R, 1)
    seed = torch.full((R,), 1234)
    stats = op.row_stats(logits, torch.full((R,), 0.7), seed, torch.arange(R))
    expected = torch.softmax(logits[0] / 0.7, 0) * R
    seen = torch.bincount(stats.sample, minlength=5)
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 23.5, f"{chi_square=} at four degrees of freedom (p = 1e-4)"


def test_config_fills_the_gpu() -> None:
    for rows, vocab in ((1, 262144), (256, 262144), (2048, 262144), (1, 1)):
        cfg = _config.choose(rows, vocab, 132)
        assert cfg.splits * cfg.tiles * _config.TILE >= vocab
        assert cfg.splits & (cfg.splits - 1) == 0
    assert _config.choose(256, 262144, 132).splits == 4
    assert _config.choose(1, 262144, 132).splits == 64


@pytest.mark.gpu
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case) -> None:
    args = make(case, "cuda")
    got = op.row_stats(*args, softcap=case.softcap)
    for r in range(0, case.rows, 64):  # the reference is wide
        part = tuple(x[r : r + 64] for x in args)
        want = reference.row_stats(*part, softcap=case.softcap)
        check(RowStats(*(x[r : r + 64] for x in got)), want, part, case)
