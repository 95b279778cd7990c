"""Which settled canvases are empty answers."""

import pytest
import torch

from diffusiongemma_vllm.denoise.reroll import Reroll

RULE = Reroll(most=2, ends=torch.tensor([1, 106]))


@pytest.mark.parametrize(("text", "roll", "again", "why"), [
    ([106, 0, 0], 0, True, "only the end of a turn"),
    ([1, 5, 6], 1, True, "what stands behind an end is no text"),
    ([1, 1, 1], 2, False, "often enough"),
    ([5, 106, 0], 0, False, "one word"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_an_answer_that_begins_with_its_end(text, roll, again, why):
    assert bool(RULE(torch.tensor(text), torch.tensor(roll))) is again
