"""Train text and eyes together on one GPU: train.py, with a batch of pictures in every few.

    python examples/miniature/train_eyes.py --out DIR [--weights DIR] [--minutes 8.2] [--share 0.25]

Going on from a checkpoint (`--weights`) keeps what its text weights know. At the end it prints the
share of held-out pictures that the twin answers exactly, task by task, after train.py's table.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import train as text
from drawings import TASKS, Seen, expanded, heldout, stream
from export import save_checkpoint
from eyes import SOFT, Scene, Seeing
from loader import CANVAS, Batch, load
from sampler import Rules, sample_canvas
from tokens import PAD, STOP, encode
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

LENGTH, ROWS, FRAMES = 192, 48, 2
Packed = tuple[Tensor, ...]


def packed(taken: list[Seen]) -> Packed:
    """ids [B, L], seen [B, L], canvas [B, C] i16; ends [B, 2]; patches [B, S, P, 768] u8."""
    count = len(taken)
    ids, seen = (np.full((count, LENGTH), fill, np.int16) for fill in (PAD, 0))
    canvas, ends = np.full((count, CANVAS), PAD, np.int16), np.zeros((count, 2), np.int16)
    shown = np.zeros((count, FRAMES, SOFT * 9, 768), np.uint8)
    for i, one in enumerate(taken):
        tokens, starts = expanded(one.prompt)
        said = encode(one.answer + "<turn|>")
        ids[i, : len(tokens)], canvas[i, : len(said)] = tokens, said
        ends[i] = len(tokens), len(said)
        for k, (start, cut) in enumerate(zip(starts, one.cut(), strict=True)):
            seen[i, start : start + SOFT] = k * SOFT + np.arange(1, SOFT + 1)
            shown[i, k] = cut.values
    return tuple(map(torch.from_numpy, (ids, seen, canvas, ends, shown)))


def unpacked(parts: Packed) -> Batch:
    ids, seen, canvas, ends, shown = parts
    scene = Scene(ids.long(), shown, seen.long())
    return Batch(scene, ends[:, 0].long(), canvas.long(), ends[:, 1].long())


class Pictures(IterableDataset):
    def __init__(self, seed: int, rows: int):
        self.seed, self.rows = seed, rows

    def __iter__(self) -> Iterator[Packed]:
        worker = get_worker_info()
        drawn = stream(self.seed * 1000 + (worker.id if worker else 0))
        while True:
            yield packed(list(islice(drawn, self.rows)))


Stepper = Callable[[Packed, bool], None]


def eager(state: text.State) -> Stepper:
    return lambda parts, conditioned: text.step(
        state, unpacked(tuple(part.to(state.device) for part in parts)), conditioned
    )


def captured(state: text.State, example: Packed) -> Stepper:
    """Steps replayed from two CUDA graphs, of one batch shape."""
    stream = torch.cuda.Stream()
    held = tuple(part.cuda() for part in example)
    graphs = {}
    for conditioned in (False, True):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                text.step(state, unpacked(held), conditioned)
        torch.cuda.synchronize()
        graphs[conditioned] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[conditioned], stream=stream):
            text.step(state, unpacked(held), conditioned)
    torch.cuda.synchronize()

    def run(parts: Packed, conditioned: bool) -> None:
        for place, part in zip(held, parts, strict=True):
            place.copy_(part.pin_memory(), non_blocking=True)
        graphs[conditioned].replay()

    return run


@torch.no_grad()
def score(model: Seeing, count: int, rows: int = 16) -> dict[str, float]:
    """Share of held-out pictures answered exactly, by task."""
    right: dict[str, list[bool]] = {name: [] for name in TASKS}
    examples = heldout(count)
    device = model.decoder.norm.weight.device
    for at in range(0, len(examples), rows):
        some = examples[at : at + rows]
        batch = unpacked(tuple(part.to(device) for part in packed(some)))
        best, _ = sample_canvas(model, batch.context, batch.lengths, Rules())
        for one, row in zip(some, best.tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in STOP), len(row))
            right[one.task].append(row[:end] == encode(one.answer))
    return {name: sum(found) / max(1, len(found)) for name, found in right.items()}


def train(state: text.State, runs: tuple, batches: tuple, args, began: float) -> int:
    coin, bar, count = random.Random(args.seed), tqdm(mininterval=5, unit="step"), 0
    saved = time.monotonic()
    while (progress := (time.monotonic() - began) / (args.minutes * 60)) < 1:
        state.lr.fill_(text.learning_rate(count, progress, args.lr))
        kind = int(coin.random() < args.share)
        runs[kind](next(batches[kind]), coin.random() < 0.5)
        count += 1
        bar.update()
        if count % 250 == 0:
            tqdm.write(f"{count} steps, {'pictures' if kind else 'text'}: loss {state.loss:.4f}")
            if time.monotonic() - saved > 90:
                save_checkpoint(state.model, args.out)
                saved = time.monotonic()
    bar.close()
    return count


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the miniature's text and eyes together.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--weights", type=Path, help="checkpoint folder to go on from")
    parser.add_argument("--minutes", type=float, default=8.2)
    parser.add_argument("--share", type=float, default=0.25, help="of steps that are of pictures")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--shrink", type=int, default=1, help="divide the batch sizes (for a CPU)")
    parser.add_argument("--eval", type=int, default=200, help="held-out prompts and pictures")
    return parser.parse_args()


def main() -> None:
    args, began = arguments(), time.monotonic()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = max(1, ROWS // args.shrink)
    drawn = iter(DataLoader(Pictures(args.seed, rows), batch_size=None, num_workers=args.workers))
    batches = load(args.seed, args.workers, args.shrink), drawn
    state = text.start(device, Seeing)
    if args.weights:
        text.go_on(state, args.weights)
    if device.type == "cuda":
        runs = text.captured(state, args.shrink), captured(state, next(drawn))
    else:
        runs = text.eager(state), eager(state)
    count = train(state, runs, batches, args, began)
    for p, average in zip(state.model.parameters(), state.average, strict=True):
        p.data.copy_(average.bfloat16())
    save_checkpoint(state.model, args.out)
    print(f"{count} steps in {time.monotonic() - began:.0f} s")
    state.model.dtype = torch.float32
    if args.eval:
        print(text.score(state.model, args.eval)["exact"])
        print(score(state.model, args.eval))


if __name__ == "__main__":
    main()
