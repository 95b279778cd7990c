"""What the GPU at hand can do, asked once per device."""

from functools import cache
from typing import Generic, NamedTuple, TypeVar

import torch

Tuned = TypeVar("Tuned")


class Target(NamedTuple):
    capability: tuple[int, int]
    processors: int


class ByGpu(NamedTuple, Generic[Tuned]):
    """What an op is tuned to, by the kind of GPU."""

    hopper: Tuned
    blackwell: Tuned  # sm_100
    ampere: Tuned  # sm_80
    small: Tuned  # 99 KB of shared memory: sm_86, sm_89, sm_120

    def at(self, capability: tuple[int, int]) -> Tuned:
        if capability[0] == 9:
            return self.hopper
        if capability[0] == 10:
            return self.blackwell
        return self.ampere if capability == (8, 0) else self.small


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
