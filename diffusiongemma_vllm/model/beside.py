"""Two branches of a layer at once, on two streams of its GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from vllm import envs
from vllm.utils.multi_stream_utils import maybe_execute_in_parallel
from vllm.utils.torch_utils import aux_stream

from diffusiongemma_vllm.model.ranks import Ranks

Long = TypeVar("Long")
Short = TypeVar("Short")


class Beside:
    """What two functions return; on one GPU they run at the same time.

    They share no memory that either writes.  Of several ranks each would sum over all ranks at the
    same time, which one communicator does not allow, so there, in vLLM's batch-invariant mode and
    on CPU one follows the other.
    """

    def __init__(self, ranks: Ranks) -> None:
        alone = ranks.count == 1 and not envs.VLLM_BATCH_INVARIANT
        self.stream = aux_stream() if alone else None
        if self.stream is not None:
            self.begun, self.done = torch.cuda.Event(), torch.cuda.Event()

    def __call__(self, long: Callable[[], Long], short: Callable[[], Short]) -> tuple[Long, Short]:
        if self.stream is None:
            return long(), short()
        first, second = maybe_execute_in_parallel(long, short, self.begun, self.done, self.stream)
        return first, second
