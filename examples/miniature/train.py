"""Train the miniature on one GPU in under ten minutes and write its checkpoint.

    python examples/miniature/train.py --out DIR

Worker processes make the examples (loader.py), objective.py says what is minimised. On a GPU each
of the six kinds of step (three batch shapes, self-conditioned or not) is captured once as a CUDA
graph, forward to optimizer: the model is so small that launching its kernels one by one costs
several times what they compute. The learning rate follows the clock, so a slower GPU trains less
but still to the end of the schedule.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import SCORED, heldout, table
from export import save_checkpoint
from loader import BUCKETS, CANVAS, Batch, load, unpack
from model import Miniature
from objective import loss_of
from safetensors.torch import load_file
from sampler import sample
from tokens import encode
from torch import Tensor
from tqdm import tqdm

AVERAGE = 0.998


@dataclass(frozen=True)
class State:
    """What training changes. `lr` [] and `loss` [] live on the device, where graphs read them."""

    model: Miniature
    optimizer: torch.optim.Optimizer
    average: list[Tensor]
    lr: Tensor
    loss: Tensor

    @property
    def device(self) -> torch.device:
        return self.loss.device


def start(device: torch.device, make: Callable[[], Miniature] = Miniature) -> State:
    model = make().to(device)
    model.dtype = torch.bfloat16
    parameters, gpu = list(model.parameters()), device.type == "cuda"
    lr = torch.zeros((), device=device)
    optimizer = torch.optim.AdamW(
        parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=gpu, capturable=gpu
    )
    average = [p.detach().clone() for p in parameters]
    return State(model, optimizer, average, lr, torch.zeros((), device=device))


def step(state: State, batch: Batch, conditioned: bool) -> None:
    """One optimizer step; nothing in it waits for the device."""
    parameters = list(state.model.parameters())
    loss = loss_of(state.model, batch, conditioned)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    state.optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(state.average, parameters, 1 - AVERAGE)
        state.loss.copy_(loss)
    state.optimizer.zero_grad(set_to_none=True)


Stepper = Callable[[np.ndarray, bool], None]


def eager(state: State) -> Stepper:
    """Steps run kernel by kernel."""

    def run(packed: np.ndarray, conditioned: bool) -> None:
        step(state, unpack(torch.from_numpy(packed).to(state.device)), conditioned)

    return run


def captured(state: State, shrink: int) -> Stepper:
    """Steps replayed from CUDA graphs, one for each batch shape and kind."""
    # cuDNN plans every new shape for seconds; the other two attention kernels start at once
    torch.backends.cuda.enable_cudnn_sdp(False)
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    inputs: dict[int, Tensor] = {}
    graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
    for length, size in BUCKETS:
        # any ids do for the rehearsal: the learning rate is still zero
        packed = torch.ones(size // shrink, length + CANVAS + 2, dtype=torch.int16, device="cuda")
        inputs[packed.shape[1]] = packed
        for conditioned in (False, True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    step(state, unpack(packed), conditioned)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                step(state, unpack(packed), conditioned)
            graphs[packed.shape[1], conditioned] = graph
    torch.cuda.synchronize()

    def run(packed: np.ndarray, conditioned: bool) -> None:
        width = packed.shape[1]
        inputs[width].copy_(torch.from_numpy(packed).pin_memory(), non_blocking=True)
        graphs[width, conditioned].replay()

    return run


def learning_rate(count: int, progress: float, peak: float) -> float:
    """Linear warm-up over 300 steps, then a cosine to zero at the end of the time budget."""
    return peak * min(1.0, (count + 1) / 300) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(state: State, run: Stepper, batches: Iterator[np.ndarray], args, began: float) -> int:
    """Optimise until `args.minutes` after `began`; returns the number of steps."""
    coin, bar = random.Random(args.seed), tqdm(mininterval=5, unit="step")
    count, waited, saved = 0, 0.0, time.monotonic()
    while (progress := (time.monotonic() - began) / (args.minutes * 60)) < 1:
        state.lr.fill_(learning_rate(count, progress, args.lr))
        asked = time.monotonic()
        packed = next(batches)
        waited += time.monotonic() - asked
        run(packed, coin.random() < 0.5)
        count += 1
        bar.update()
        if count % 250 == 0:
            spent = time.monotonic() - began
            tqdm.write(f"{count} steps {spent:.0f}s (data {waited:.0f}s) loss {state.loss:.4f}")
            if time.monotonic() - saved > 90:
                save_checkpoint(state.model, args.out)
                saved = time.monotonic()
    bar.close()
    return count


def score(model: Miniature, count: int) -> dict:
    """Held-out exact match with the sampler's rules, and the denoise steps a canvas."""
    examples = heldout(count)
    answers, steps = sample(model, [encode(e.prompt) for e in examples])
    correct = [a == encode(e.answer) for a, e in zip(answers, examples, strict=True)]
    taken = torch.tensor([s for row in steps for s in row]).float()
    exact = {key: round(value, 3) for key, value in table(correct, examples).items()}
    return {
        "exact": exact,
        "steps_median": taken.median().item(),
        "steps_p95": taken.quantile(0.95).item(),
    }


def go_on(state: State, folder: Path) -> None:
    """Start from the weights of a checkpoint instead of random ones."""
    missing, _ = state.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing:
        raise ValueError(
            f"{folder}/model.safetensors lacks {missing[0]} and {len(missing) - 1} more"
        )
    for p, average in zip(state.model.parameters(), state.average, strict=True):
        average.copy_(p.detach())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the miniature DiffusionGemma.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--minutes", type=float, default=8.2, help="training time, from the start")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=12, help="processes that make examples")
    parser.add_argument("--shrink", type=int, default=1, help="divide the batch size (for a CPU)")
    parser.add_argument("--eval", type=int, default=200, help="held-out prompts at the end")
    parser.add_argument("--weights", type=Path, help="checkpoint folder to go on from")
    parser.add_argument("--eager", action="store_true", help="do not capture CUDA graphs")
    return parser.parse_args()


def main() -> None:
    args, began = arguments(), time.monotonic()
    batches = load(args.seed, args.workers, args.shrink)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = start(device)
    if args.weights:
        go_on(state, args.weights)
    save_checkpoint(state.model, args.out)
    graphs = device.type == "cuda" and not args.eager
    run = captured(state, args.shrink) if graphs else eager(state)
    print(f"ready after {time.monotonic() - began:.0f} s")
    count = train(state, run, batches, args, began)
    for p, average in zip(state.model.parameters(), state.average, strict=True):
        p.data.copy_(average.bfloat16())
    save_checkpoint(state.model, args.out)
    print(f"{count} steps in {time.monotonic() - began:.0f} s")
    for dtype in (torch.bfloat16, torch.float32) if args.eval else ():
        state.model.dtype = dtype
        result = {"dtype": str(dtype), "steps": count, **score(state.model, args.eval)}
        for task in [*SCORED, "all"]:
            print(f"{task:12s} {result['exact'].get(task, float('nan')):.3f}")
        print(json.dumps(result))


if __name__ == "__main__":
    main()
