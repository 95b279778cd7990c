"""The walk to allowed text: a vocabulary of 4, token 3 ends the text."""

import torch

from diffusiongemma_vllm.denoise.edits import Known, Scene
from diffusiongemma_vllm.denoise.walk import Patience, Walk

END, CLOSER = 3, 2


class Pattern:
    """Each position's allowed tokens, in order."""

    def __init__(self, *places):
        self.places, self.text = places, []

    def _here(self):
        return self.places[len(self.text)]

    def allowed(self):
        return lambda token: token in self._here()

    def allowed_mask(self, vocab):
        mask = torch.zeros(vocab, dtype=torch.bool)
        mask[list(self._here())] = True
        return mask

    def accept(self, token):
        assert token in self._here()
        self.text.append(token)

    def over(self):
        return self.text[-1:] == [END]

    def is_text(self, token):
        return token != END

    def closing(self):
        return self._here()[-1] if CLOSER in self._here() else None


def logits(*rows):
    return torch.tensor(rows).log()


ANY = (0, 1, 2)
ROWS = logits([0.7, 0.2, 0.1, 0.0], [0.1, 0.7, 0.2, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0, 0, 0])


def test_the_best_token_where_it_is_allowed():
    assert Walk(0.1)(Pattern(ANY, ANY, (END,)), ROWS, 4) == [0, 1, END]


def test_the_best_allowed_one_elsewhere():
    assert Walk(0.1)(Pattern((1, 2), ANY, (END,)), ROWS, 4) == [1, 1, END]


def test_it_stops_where_too_little_is_allowed():
    """Of the second position's probability 0.3 is allowed."""
    assert Walk(0.31)(Pattern(ANY, (0, 2), ANY), ROWS, 4) == [0]
    assert Walk(0.29)(Pattern(ANY, (0, 2), (END,)), ROWS, 4) == [0, 2, END]


def test_it_gives_as_much_as_it_must():
    assert Walk(0.31)(Pattern(ANY, (0, 2), ANY), ROWS, 4, least=2) == [0, 2]
    assert Walk(0.31)(Pattern(ANY, (0, 2), (END,)), ROWS, 4, least=2) == [0, 2, END]


def test_a_model_that_wants_to_end_and_must_write_is_led_to_an_end():
    """At the third position all that the canvas knows is an end, which is not allowed there."""
    over = Pattern(ANY, ANY, (0, 1, CLOSER), (END,))
    wants = logits(
        [0.7, 0.2, 0.1, 0.0], [0.1, 0.7, 0.2, 0.0], [0.04, 0.01, 0, 0.95], [0, 0, 0, 1.0]
    )
    assert Walk(0.1)(over, wants, 4, least=3) == [0, 1, CLOSER, END]
    assert Walk(0.1)(Pattern(ANY, ANY, (0, 1)), wants, 3, least=3) == [0, 1, 0]
    assert Walk(0.9)(Pattern(ANY, ANY, ANY), wants, 4) == [0, 1]


def test_the_last_that_it_must_give_closes():
    """At the second position 0.3 of the probability is allowed, and its best is no closer."""
    places = (ANY, (0, 2), (END,))
    unsure = logits([0.7, 0.2, 0.1, 0.0], [0.2, 0.7, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0])
    assert Walk(0.31)(Pattern(*places), unsure, 3, least=2, close=True) == [0, CLOSER, END]
    assert Walk(0.31)(Pattern(*places), unsure, 3, least=2) == [0, 0, END]
    assert Walk(0.29)(Pattern(*places), unsure, 3, least=2, close=True) == [0, 0, END]


def test_it_always_gives_one_token():
    assert Walk(0.9)(Pattern((2,), (0,)), ROWS, 4) == [2]
    impossible = torch.full((2, 4), float("-inf"))
    impossible[:, 0] = 0.0
    assert Walk(0.9)(Pattern((1, 2), (0,)), impossible, 2)[0] in (1, 2)


def test_no_further_than_the_canvas():
    assert Walk(0.1)(Pattern(ANY, ANY, ANY), ROWS, 2) == [0, 1]


def test_what_is_known_of_a_canvas():
    """Token 2, then 1, then 0 or 3; nothing of the last position."""
    then = torch.tensor([True, False, False, True])
    scene = Scene(torch.zeros(4), torch.tensor(0), 0, torch.zeros(4), torch.tensor(4))
    got = Known(torch.tensor([2, 1]), then)(torch.zeros(4, 4), scene)
    assert [row.isfinite().nonzero().flatten().tolist() for row in got] == [
        [2], [1], [0, 3], [0, 1, 2, 3]
    ]
    longer = Known(torch.tensor([2, 1, 0, 1, 3, 3]), then)(torch.zeros(4, 4), scene)
    assert longer.argmax(-1).tolist() == [2, 1, 0, 1]


def test_patience_with_short_canvases():
    patience = Patience(text=4, steps=2, lost=4, most=16)
    assert [patience(48, n) for n in (0, 1, 2, 3, 4, 5, 99)] == [48, 24, 12, 6, 3, 2, 2]
    assert patience(1, 0) == patience(1, 9) == 1
    assert [patience.least(n) for n in (0, 4, 5, 6, 8, 9, 99)] == [1, 1, 2, 4, 16, 16, 16]
    assert [patience.close(n) for n in (0, 7, 8, 99)] == [False, False, True, True]
    assert [patience.count(3, tokens) for tokens in (1, 3, 4, 200)] == [4, 4, 1, 1]
    assert [patience.count(7, tokens) for tokens in (8, 9)] == [8, 3]
