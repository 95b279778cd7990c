"""Training rows made by worker processes: a context, the canvas that follows it, its length.

The answer is padded to whole canvases of 256; each of them is one row, whose context is the prompt
and the canvases before it, clean (block diffusion, arXiv 2503.09573).
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from data import Example, stream
from tokens import PAD, encode
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

CANVAS = 256
# (longest context, rows a batch): about 33,000 tokens a batch, three shapes in all
BUCKETS = [(96, 96), (320, 56), (704, 32)]


class Batch(NamedTuple):
    """context [B, L], its true lengths [B], canvas [B, C], said [B] tokens that are not padding."""

    context: Tensor
    lengths: Tensor
    canvas: Tensor
    said: Tensor


def rows(example: Example) -> Iterator[tuple[list[int], list[int], int]]:
    """(context, canvas padded to 256, how many of its tokens are not padding)."""
    prompt, answer = encode(example.prompt), encode(example.answer)
    for start in range(0, len(answer), CANVAS):
        canvas = answer[start : start + CANVAS]
        yield prompt + answer[:start], canvas + [PAD] * (CANVAS - len(canvas)), len(canvas)


def pack(taken: list[tuple[list[int], list[int], int]], length: int) -> np.ndarray:
    """A batch as one array [B, L + C + 2] i16: context, canvas, lengths, said."""
    packed = np.full((len(taken), length + CANVAS + 2), PAD, np.int16)
    for row, (context, canvas, said) in zip(packed, taken, strict=True):
        row[: len(context)] = context
        row[length:-2] = canvas
        row[-2:] = len(context), said
    return packed


def unpack(packed: Tensor) -> Batch:
    """The opposite of pack(), as int64."""
    context, canvas, ends = packed.long().split([packed.shape[1] - CANVAS - 2, CANVAS, 2], 1)
    return Batch(context, ends[:, 0], canvas, ends[:, 1])


class Batches(IterableDataset):
    """Packed batches for ever, of sizes divided by `shrink`; a seed for every worker."""

    def __init__(self, seed: int, shrink: int = 1):
        self.seed, self.shrink = seed, shrink

    def __iter__(self) -> Iterator[np.ndarray]:
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
                    yield pack(bucket, length)
                    bucket.clear()


def _same(batch: np.ndarray) -> np.ndarray:
    return batch


def load(seed: int, workers: int, shrink: int = 1) -> Iterator[np.ndarray]:
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


def first(count: int, seed: int = 0) -> list[np.ndarray]:
    """A few small batches, for tests."""
    return list(islice(iter(Batches(seed, shrink=32)), count))
