"""Training rows made by worker processes: a context, the canvas that follows it, its length.

The answer is padded to whole canvases of 256; each of them is one row, whose context is the prompt
and the canvases before it, clean (block diffusion, arXiv 2503.09573).
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from data import Example, stream
from tokens import PAD, encode
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

CANVAS = 256
# (longest context, rows a batch): about 65,000 tokens a batch, three shapes in all
BUCKETS = [(96, 192), (320, 112), (704, 64)]


class Batch(NamedTuple):
    """context [B, L] i16, lengths [B] of the contexts, canvas [B, C] i16, said [B] real tokens."""

    context: np.ndarray
    lengths: np.ndarray
    canvas: np.ndarray
    said: np.ndarray


def rows(example: Example) -> Iterator[tuple[list[int], list[int], int]]:
    """(context, canvas padded to 256, how many of its tokens are not padding)."""
    prompt, answer = encode(example.prompt), encode(example.answer)
    for start in range(0, len(answer), CANVAS):
        canvas = answer[start : start + CANVAS]
        yield prompt + answer[:start], canvas + [PAD] * (CANVAS - len(canvas)), len(canvas)


def _pack(taken: list[tuple[list[int], list[int], int]], length: int) -> Batch:
    context = np.full((len(taken), length), PAD, np.int16)
    for i, (ids, _, _) in enumerate(taken):
        context[i, : len(ids)] = ids
    return Batch(
        context,
        np.array([len(ids) for ids, _, _ in taken], np.int64),
        np.array([canvas for _, canvas, _ in taken], np.int16),
        np.array([said for _, _, said in taken], np.int64),
    )


class Batches(IterableDataset):
    """Batches for ever; every worker has a seed of its own. `shrink` divides the batch size."""

    def __init__(self, seed: int, shrink: int = 1):
        self.seed, self.shrink = seed, shrink

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        waiting: list[list] = [[] for _ in BUCKETS]
        for example in stream(self.seed * 1000 + (worker.id if worker else 0)):
            for row in rows(example):
                fits = [i for i, (length, _) in enumerate(BUCKETS) if len(row[0]) <= length]
                if not fits:
                    continue
                bucket = waiting[fits[0]]
                bucket.append(row)
                length, size = BUCKETS[fits[0]]
                if len(bucket) == max(1, size // self.shrink):
                    yield _pack(bucket, length)
                    bucket.clear()


def _same(batch: Batch) -> Batch:
    return batch


def load(seed: int, workers: int, shrink: int = 1) -> Iterator[Batch]:
    """The batches, made by `workers` processes."""
    extra = {"prefetch_factor": 16} if workers else {}
    return iter(
        DataLoader(
            Batches(seed, shrink),
            batch_size=None,
            num_workers=workers,
            collate_fn=_same,
            **extra,
        )
    )


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The batch as int64 tensors on `device`."""
    tensors = (torch.from_numpy(part) for part in batch)
    if device.type == "cuda":
        tensors = (part.pin_memory() for part in tensors)
    return tuple(part.to(device, non_blocking=True).long() for part in tensors)


def first(count: int, seed: int = 0) -> list[Batch]:
    """A few small batches, for tests."""
    return list(islice(iter(Batches(seed, shrink=64)), count))
