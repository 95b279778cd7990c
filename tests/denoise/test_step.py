"""One denoise step: canvases of 3 tokens."""

import torch

from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.denoise.step import DenoiseRules, Guess, denoise
from diffusiongemma_vllm.state import Canvases

CONFIG = DenoiseConfig(
    canvas_length=3, vocab_size=100, max_steps=8, t_min=0.4, t_max=0.8, entropy_bound=1.0,
    stability_steps=1, confidence=0.5,
)
RULES = DenoiseRules.of(CONFIG)
NOISE = torch.tensor([[91, 92, 93]])


def canvas(best=(-1, -1, -1), *, held=0, step=0, width=3):
    return Canvases(
        tokens=torch.zeros(1, 3, dtype=torch.int64), best=torch.tensor([best]),
        base=torch.tensor([0]), width=torch.tensor([width]), step=torch.tensor([step]),
        held=torch.tensor([held]), roll=torch.tensor([0]),
    )


def guess(entropy, best=(1, 2, 3), sample=(11, 12, 13)):
    return Guess(torch.tensor([best]), torch.tensor([sample]), torch.tensor([entropy]))


def test_the_sure_positions_take_their_sample_the_others_noise():
    got = denoise(RULES, canvas(), guess([2.0, 0.5, 0.5]), NOISE)
    assert got.tokens.tolist() == [[11, 12, 13]]  # 0.5 + 0.5 = 1.0: the third too
    got = denoise(RULES, canvas(), guess([2.0, 0.6, 0.5]), NOISE)
    assert got.tokens.tolist() == [[91, 12, 13]]


def test_the_guess_is_kept_for_the_next_step():
    assert denoise(RULES, canvas(), guess([9.0, 9.0, 9.0]), NOISE).best.tolist() == [[1, 2, 3]]


def test_the_first_step_has_nothing_to_hold():
    got = denoise(RULES, canvas(), guess([0.0, 0.0, 0.0]), NOISE)
    assert got.held.tolist() == [0] and got.done.tolist() == [False]


def test_holding_is_counted_and_starts_again():
    sure = guess([0.0, 0.0, 0.0])
    assert denoise(RULES, canvas((1, 2, 3), held=4), sure, NOISE).held.tolist() == [5]
    assert denoise(RULES, canvas((1, 2, 9), held=4), sure, NOISE).held.tolist() == [0]


def test_done_when_settled_and_confident():
    """The mean entropy of 0.4, 0.4 and 0.4 is below 0.5; of 0.4, 0.4 and 0.7 it is not."""
    settled = canvas((1, 2, 3))
    assert denoise(RULES, settled, guess([0.4, 0.4, 0.4]), NOISE).done.tolist() == [True]
    assert denoise(RULES, settled, guess([0.4, 0.4, 0.7]), NOISE).done.tolist() == [False]
    assert denoise(RULES, canvas(), guess([0.4, 0.4, 0.4]), NOISE).done.tolist() == [False]


def test_done_at_the_step_limit():
    unsure = guess([9.0, 9.0, 9.0])
    assert denoise(RULES, canvas(step=6), unsure, NOISE).done.tolist() == [False]
    assert denoise(RULES, canvas(step=7), unsure, NOISE).done.tolist() == [True]


def test_a_short_canvas_is_judged_by_the_positions_that_exist():
    """The third position does not exist: its guess, its entropy and its share do not count."""
    got = denoise(RULES, canvas((1, 2, 99), width=2), guess([0.4, 0.4, 50.0]), NOISE)
    assert got.held.tolist() == [1] and got.done.tolist() == [True]


def test_a_canvas_without_room_is_finite():
    got = denoise(RULES, canvas(width=0), guess([1.0, 1.0, 1.0]), NOISE)
    assert got.held.tolist() == [1]


def test_canvases_of_a_batch_are_apart():
    batch = Canvases(*(torch.cat(pair) for pair in zip(
        vars(canvas((1, 2, 3))).values(), vars(canvas()).values(), strict=True
    )))
    both = Guess(*(torch.cat([x, x]) for x in vars(guess([0.0, 0.0, 0.0])).values()))
    got = denoise(RULES, batch, both, NOISE.expand(2, -1))
    assert got.held.tolist() == [1, 0] and got.done.tolist() == [True, False]


def test_the_rules_are_the_checkpoints():
    assert RULES.schedule(torch.tensor([0])).item() == torch.tensor(0.8).item()
    assert RULES.accept.bound == 1.0
