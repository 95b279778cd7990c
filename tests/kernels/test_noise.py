"""The noise: known answers, the same bits everywhere, and no pattern that a simple test sees."""

import pytest
import torch

from diffusiongemma_kernels import noise
from diffusiongemma_kernels.row_stats import op


def unsigned(words: str) -> list[int]:
    return [int(w, 16) for w in words.split()]


def signed(low: int, high: int) -> torch.Tensor:
    value = low | high << 32
    return torch.tensor(value - (1 << 64) if value >> 63 else value)


# Random123's kat_vectors, "philox4x32 7": counter, key, answer.
KNOWN = [
    ("0 0 0 0", "0 0", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "5207ddc2 45165e59 4d8ee751 8c52f662"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "4dfccaba 190a87f0 c47362ba b6b5242a"),
]  # fmt: skip


@pytest.mark.parametrize("counter, key, answer", KNOWN)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    c, k = unsigned(counter), unsigned(key)
    words = noise.philox(signed(*k), signed(*c[:2]), torch.tensor(c[2]), c[3])
    assert [w.item() for w in words] == unsigned(answer)


def test_a_token_has_one_word_however_it_is_reached() -> None:
    seed, counter = torch.tensor([7, -9]), torch.tensor([3, 2**40])
    whole = noise.token_words(seed, counter, 0, 10000)
    for start, stop in ((0, 1), (1023, 1025), (4000, 4200), (4096, 8192), (9999, 10000)):
        assert torch.equal(noise.token_words(seed, counter, start, stop), whole[:, start:stop])
    assert torch.equal(noise.token_words(seed.flip(0), counter.flip(0), 0, 10000), whole.flip(0))


def test_uniform_numbers_stay_inside_the_open_interval() -> None:
    ends = noise.uniform(torch.tensor([0, 2**32 - 1]))
    assert ends.tolist() == [2**-24, 1 - 2**-24]
    assert noise.gumbel(torch.tensor([0, 2**32 - 1])).isfinite().all()


def chi_square_is_ordinary(counts: torch.Tensor) -> None:
    """Within five deviations of its mean, either way."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    free = counts.numel() - 1
    assert abs(statistic - free) < 5 * (2 * free) ** 0.5, f"{statistic=} {free=}"


def pairs(a: torch.Tensor, b: torch.Tensor, bins: int = 32) -> torch.Tensor:
    return torch.bincount(
        (a * bins >> 32) * bins + (b * bins >> 32), minlength=bins * bins
    ).double()


SEQUENTIAL = torch.arange(64)


@pytest.mark.parametrize(
    "seed, counter",
    [(SEQUENTIAL, SEQUENTIAL * 0), (SEQUENTIAL * 0, SEQUENTIAL), (SEQUENTIAL, SEQUENTIAL << 32)],
    ids=["seeds in order", "counters in order", "both"],
)
def test_words_are_uniform_and_independent(seed: torch.Tensor, counter: torch.Tensor) -> None:
    words = noise.token_words(seed, counter, 0, 8192)
    chi_square_is_ordinary(torch.bincount((words >> 22).flatten(), minlength=1024).double())
    chi_square_is_ordinary(torch.bincount((words & 1023).flatten(), minlength=1024).double())
    chi_square_is_ordinary(pairs(words[:, :-1].flatten(), words[:, 1:].flatten()))
    chi_square_is_ordinary(pairs(words[:, :-1024].flatten(), words[:, 1024:].flatten()))
    chi_square_is_ordinary(pairs(words[:-1].flatten(), words[1:].flatten()))


def test_gumbel_has_its_mean_and_variance() -> None:
    g = noise.gumbel(noise.token_words(torch.arange(32), torch.arange(32), 0, 32768)).double()
    assert g.mean().item() == pytest.approx(0.57722, abs=5e-3)
    assert g.var().item() == pytest.approx(1.64493, abs=1e-2)


def test_tokens_are_uniform_and_not_the_gumbel_words() -> None:
    seed, counter = torch.full((200000,), 5), torch.arange(200000)
    tokens = op.hash_uniform_tokens(seed, counter, 1000)
    assert tokens.min() == 0 and tokens.max() == 999
    chi_square_is_ordinary(torch.bincount(tokens, minlength=1000).double())
    word = noise.token_words(seed[:1], counter[:1], 0, 1)
    assert (word * 1000 >> 32) != tokens[:1]


def test_triton_makes_the_same_tokens(device: str) -> None:
    g = torch.Generator().manual_seed(0)
    seed = torch.randint(-(2**63), 2**63 - 1, (3, 257), generator=g)
    counter = torch.randint(-(2**63), 2**63 - 1, (3, 257), generator=g)
    for vocab in (1, 1000, 262144, 2**31 - 1):
        got = op.hash_uniform_tokens_triton(seed.to(device), counter.to(device), vocab)
        assert torch.equal(got.cpu(), noise.uniform_tokens(seed, counter, vocab))


@pytest.mark.gpu
def test_torch_makes_the_same_words_on_a_gpu() -> None:
    seed, counter = torch.arange(-3, 4) * 2**60, torch.arange(7) * 2**50
    there = noise.token_words(seed.cuda(), counter.cuda(), 0, 262144)
    assert torch.equal(there.cpu(), noise.token_words(seed, counter, 0, 262144))
