"""Drawing an empty answer's canvas again.

A terse prompt can lead to a canvas that holds nothing but the end of a turn, from most noises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reroll:
    """A settled first canvas is drawn again, ``most`` times, while it begins with the text's end.

    ends: [E] i64, the tokens that end the text.
    """

    most: int
    ends: Tensor

    def __call__(self, text: Tensor, roll: Tensor) -> Tensor:
        """text: [C] i64, a settled first canvas  roll: [] i64, how often it was drawn  ->  [] bool
        """
        return torch.isin(text[0], self.ends) & (roll < self.most)
