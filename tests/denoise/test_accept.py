"""Which positions a step keeps: the surest, while all but the last of them stay in the bound."""

import pytest
import torch

from diffusiongemma_vllm.denoise.accept import EntropyBound

INF = float("inf")


@pytest.mark.parametrize(
    ("entropy", "bound", "kept", "why"),
    [
        ([0.0, 0.0, 0.0], 0.1, [1, 1, 1], "nothing in doubt"),
        ([5.0, 6.0, 7.0], 0.1, [1, 0, 0], "the surest is always kept"),
        ([7.0, 6.0, 5.0], 0.1, [0, 0, 1], "in any order"),
        ([1.0, 2.0, 4.0], 3.0, [1, 1, 1], "1 + 2 in the bound, whatever the last one is"),
        ([1.0, 2.0, 4.0, 8.0], 3.0, [1, 1, 1, 0], "1 + 2 + 4 beyond the bound"),
        ([4.0, 1.0, 8.0, 2.0], 3.0, [1, 1, 0, 1], "the same, shuffled"),
        ([1.0, 2.0, 4.0], 2.9, [1, 1, 0], "just short of the bound"),
        ([1.0, 1.0, 1.0], 1.0, [1, 1, 0], "ties in order of position"),
        ([0.0, INF, 3.0], 0.1, [1, 0, 1], "never one that does not exist"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_by_hand(entropy, bound, kept, why):
    assert EntropyBound(bound)(torch.tensor([entropy])).int().tolist() == [kept]


def test_canvases_do_not_share_their_bound():
    accept = EntropyBound(0.5)
    rows = torch.tensor([[0.5, 0.5, 0.5], [0.1, 9.0, 9.0], [0.0, 0.0, 0.0]])
    assert accept(rows).int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]


def test_no_canvas():
    assert EntropyBound(0.1)(torch.empty(0, 4)).shape == (0, 4)
