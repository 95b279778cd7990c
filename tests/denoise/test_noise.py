"""Every draw has a counter of its own, and nothing but the request decides it."""

import torch

from diffusiongemma_kernels.row_stats.op import hash_uniform_tokens, row_stats
from diffusiongemma_vllm.denoise.noise import CANVAS, SAMPLE, counters, rolled


def one(base, step, length=4, purpose=SAMPLE):
    return counters(torch.tensor([base]), torch.tensor([step]), length, purpose)[0]


def test_by_hand():
    """position << 20 | step << 1 | purpose"""
    assert one(2, 0).tolist() == [2 << 20, 3 << 20, 4 << 20, 5 << 20]
    assert one(0, 3, 1, CANVAS).tolist() == [7]


def test_no_two_draws_share_a_counter():
    seen = set()
    for base in (0, 4, 8):  # canvases of four tokens follow each other
        for step in range(50):
            for purpose in (SAMPLE, CANVAS):
                seen.update(one(base, step, purpose=purpose).tolist())
    assert len(seen) == 12 * 50 * 2


def test_the_largest_fits_an_i64():
    last = one(262144 * 8, (1 << 19) - 1, 256, CANVAS)
    assert (last > 0).all() and last.unique().numel() == 256


def test_a_canvas_drawn_again_has_noise_of_its_own():
    """The last step of 16,384 and the last roll of 32 run into nothing."""
    seen = {
        one(base, int(rolled(torch.tensor(step), torch.tensor(roll))), 1).item()
        for base in (0, 1) for step in (0, 1, 1024, (1 << 14) - 1) for roll in (0, 1, 31)
    }
    assert len(seen) == 2 * 4 * 3
    assert int(rolled(torch.tensor(7), torch.tensor(0))) == 7


def test_a_position_does_not_depend_on_where_its_canvas_begins():
    assert one(100, 7)[2:].tolist() == one(102, 7)[:2].tolist()


def test_a_request_draws_the_same_in_any_batch():
    """Alone, in a batch, in another order: tokens and samples to the bit."""
    bases, steps = torch.tensor([10, 500, 33]), torch.tensor([0, 5, 2])
    seeds = torch.tensor([3, 2**62 + 1, 77])
    logits = torch.randn(3, 6, 300, generator=torch.Generator().manual_seed(0))

    def draw(rows):
        counter = counters(bases[rows], steps[rows], 6, SAMPLE)
        seed = seeds[rows].repeat_interleave(6)
        noise = hash_uniform_tokens(seed, counter.flatten(), 300)
        heat = torch.ones(len(seed))
        said = row_stats(logits[rows].flatten(0, 1), heat, seed, counter.flatten()).sample
        return torch.stack([noise, said]).view(2, len(rows), 6)

    together = draw([0, 1, 2])
    assert torch.equal(draw([2, 0, 1]), together[:, [2, 0, 1]])
    for i in range(3):
        assert torch.equal(draw([i]), together[:, [i]])


def test_samples_follow_the_distribution():
    """20,000 draws of 1/2, 1/4, 1/8, 1/8: within five standard deviations."""
    n = 20_000
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(n, 4).contiguous()
    counter = counters(torch.tensor([0]), torch.tensor([1]), n, SAMPLE)[0]
    drawn = row_stats(logits, torch.ones(n), torch.full((n,), 9), counter).sample
    for token, share in enumerate((0.5, 0.25, 0.125, 0.125)):
        deviation = (share * (1 - share) / n) ** 0.5
        assert abs((drawn == token).float().mean() - share) < 5 * deviation
