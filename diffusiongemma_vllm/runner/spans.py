"""Where a request's pictures stand in its prompt.

A row of a picture sees all of that picture, so a forward must hold it whole, from its first row or
from where the prefix cache ends.
Source: transformers' ``get_block_sequence_ids_for_mask`` and ``blockwise_overlay``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.multimodal.utils import get_mm_features_in_window
from vllm.v1.worker.gpu.input_batch import InputBatch

from diffusiongemma_kernels.paged import NO_IMAGE


def runs(features: Any, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Pictures, frames of videos too, that have a position in start..end.

    features: vLLM's ``MultiModalFeatureSpec`` of a request, by position.   ->  first position and
    the one behind the last
    """
    low, high = get_mm_features_in_window(features, start=start, end=end)
    for feature in features[low:high]:
        for first, last in feature.mm_position.extract_embeds_range():
            if first < end and last >= start:
                yield first, last + 1


def longest(features: Any) -> int:
    """Tokens of the longest picture of a request."""
    return max((end - begin for begin, end in runs(features, 0, 2**62)), default=0)


def whole(features: Any, start: int, count: int) -> int:
    """Fewer than ``count`` tokens from ``start`` where the last ones are a part of a picture."""
    for begin, end in runs(features, start, start + count):
        if begin < start + count < end:
            return max(0, begin - start)
    return count


def reach(features: Any, hit: int, window: int) -> int | None:
    """Most tokens of a prompt that may come from the prefix cache; None where ``hit`` may.

    The rest of a picture sees its beginning, which a layer with a sliding window has dropped once
    it lies ``window`` tokens or more before the end of the cached part.
    """
    for begin, end in runs(features, hit - 1, hit):
        if hit < end and hit - begin > window - 1:
            return begin + window - 1
    return None


def rows(batch: InputBatch, features: dict[str, Any], device: torch.device) -> Tensor | None:
    """[T, 2] i32 for the rows of a step, as ``Batch.images``; None where no picture is in it."""
    table = None
    for i in pictured(batch, features):
        start = int(batch.num_computed_tokens_np[i])
        end = start + int(batch.num_scheduled_tokens[i])
        first_row = int(batch.query_start_loc_np[i]) - start
        for begin, behind in runs(features[batch.req_ids[i]], start, end):
            assert behind <= end, "the scheduler keeps pictures whole"
            if table is None:
                table = np.empty((batch.num_tokens, 2), np.int32)
                table[:] = NO_IMAGE
            table[first_row + max(begin, start) : first_row + behind] = begin, behind
    return None if table is None else torch.from_numpy(table).to(device, non_blocking=True)


def pictured(batch: Any, features: dict[str, Any]) -> list[int]:
    """The requests of a batch that read a prompt with pictures.

    batch: vLLM's ``InputBatch``, or the ``BatchReqState`` that it is made of.
    """
    return [
        i for i, name in enumerate(batch.req_ids)
        if batch.is_prefilling_np[i] and features.get(name)
    ]
