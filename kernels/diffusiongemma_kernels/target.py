"""What the GPU at hand can do, asked once per device."""

from functools import cache
from typing import NamedTuple

import torch


class Target(NamedTuple):
    capability: tuple[int, int]
    processors: int


# What a tensor without a GPU is tuned for: only the interpreter gets here.
INTERPRETED = Target((9, 0), 132)


@cache
def _query(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    return Target((properties.major, properties.minor), properties.multi_processor_count)


def of(device: torch.device) -> Target:
    if device.type != "cuda":
        return INTERPRETED
    return _query(torch.cuda.current_device() if device.index is None else device.index)
