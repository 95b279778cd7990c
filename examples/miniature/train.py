"""Train the miniature on one GPU in under ten minutes and write its checkpoint.

    python examples/miniature/train.py --out DIR

Objective (block diffusion, arXiv 2503.09573, with uniform noise as in transformers' sampler): given
the clean context, each canvas token is replaced by a random one with probability t ~ U(0, 1) (one
example in four: t = 1, the sampler's first step) and the cross-entropy of the clean canvas is taken
on all positions. With probability 1/2 a first pass without gradient, on an equally or more noisy
canvas, conditions the second (self-conditioning, arXiv 2208.04202), its logits divided by a
temperature of the sampler's range, since that is what the sampler feeds back. Some examples keep a
part of their canvas clean, so that pinned text is filled around.
"""

import argparse
import io
import json
import math
import random
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from data import SCORED, heldout, table
from export import save_checkpoint
from loader import load, to_device
from model import Miniature, run_layer
from sampler import sample
from tokens import encode
from torch import Tensor
from tqdm import tqdm

PAD_WEIGHT, BALANCE_WEIGHT, TYPICAL_WEIGHT = 0.05, 0.002, 8.0
PART = 15 << 20


def pinned(canvas: Tensor) -> Tensor:
    """canvas [B, C] -> [B, C] bool, what stays clean: nothing, a stretch or a random subset."""
    B, C = canvas.shape
    at = torch.arange(C, device=canvas.device)
    kind, start, size = torch.rand(3, B, 1, device=canvas.device)
    # most answers are short: aim the stretch at the first 64 places half of the time
    reach = torch.where(kind < 0.06, 64, C)
    stretch = (at >= start * reach) & (at < (start + size * 0.5) * reach)
    subset = torch.rand(B, C, device=canvas.device) < size
    return ((kind < 0.12) & stretch) | ((kind >= 0.12) & (kind < 0.2) & subset)


def corrupt(canvas: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """canvas [B, C] -> the noisy canvas and one at least as noisy, both [B, C]."""
    B, C = canvas.shape
    draw, more, jump = torch.rand(3, B, 1, device=canvas.device)
    t = torch.where(torch.rand_like(draw) < 0.25, torch.ones_like(draw), draw)
    earlier = torch.where(jump < 0.5, t + (1 - t) * more, t)
    u = torch.rand(B, C, device=canvas.device)
    u = u.masked_fill(pinned(canvas), 2.0)
    noise = torch.randint(vocab, (2, B, C), device=canvas.device)
    return torch.where(u < t, noise[0], canvas), torch.where(u < earlier, noise[1], canvas)


def cross_entropy(logits: Tensor, canvas: Tensor, said: Tensor) -> Tensor:
    """Mean over examples; an example of n tokens weighs sqrt(n), padding after it PAD_WEIGHT."""
    loss = F.cross_entropy(logits.flatten(0, 1), canvas.flatten(), reduction="none")
    real = torch.arange(canvas.shape[1], device=canvas.device) < said[:, None]
    weight = torch.where(real, 1.0, PAD_WEIGHT) * said[:, None] ** -0.5
    return (loss.view_as(weight) * weight).sum() / (len(canvas) * TYPICAL_WEIGHT)


def loss_of(model: Miniature, batch: tuple[Tensor, ...], conditioned: bool) -> Tensor:
    context, lengths, canvas, said = batch
    noisy, noisier = corrupt(canvas, model.sizes.vocab)
    cache, balance = model.encode(context)
    belief = None
    if conditioned:
        with torch.no_grad():
            clean = [(k.detach(), v.detach()) for k, v in cache]
            logits, _ = model(noisier, lengths, clean, None)
            belief = logits / (0.4 + 0.4 * torch.rand(len(logits), 1, 1, device=logits.device))
    logits, more = model(noisy, lengths, cache, belief)
    return cross_entropy(logits, canvas, said) + BALANCE_WEIGHT * (balance + more)


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Linear warm-up over 300 steps, then a cosine to zero at the end of the time budget."""
    return peak * min(1.0, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class State(NamedTuple):
    model: Miniature
    optimizer: torch.optim.Optimizer
    average: list[Tensor]


def start(device: torch.device, lr: float) -> State:
    model = Miniature().to(device)
    model.dtype = torch.bfloat16
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=device.type == "cuda"
    )
    return State(model, optimizer, [p.detach().clone() for p in parameters])


def train(state: State, batches, args: argparse.Namespace, began: float) -> int:
    """Optimise until `args.minutes` after `began`; returns the number of steps."""
    model, optimizer, average = state
    parameters = list(model.parameters())
    device, budget, coin = parameters[0].device, args.minutes * 60, random.Random(0)
    bar, step, waited = tqdm(mininterval=5, unit="step"), 0, 0.0
    while (progress := (time.monotonic() - began) / budget) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, args.lr)
        asked = time.monotonic()
        batch = to_device(next(batches), device)
        waited += time.monotonic() - asked
        loss = loss_of(model, batch, coin.random() < 0.5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(0.998, (step + 1) / (step + 10)))
        step += 1
        bar.update()
        if step % 100 == 0:
            spent = time.monotonic() - began
            tqdm.write(f"step {step} {spent:.0f}s (data {waited:.0f}s) loss {loss.item():.4f}")
    return step


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


def save_state(state: State, folder: Path) -> None:
    """Weights and optimizer in files of 15 MiB, for --resume."""
    moments = [
        {key: state.optimizer.state[p][key].bfloat16() for key in ("exp_avg", "exp_avg_sq")}
        for p in state.model.parameters()
    ]
    buffer = io.BytesIO()
    torch.save({"weights": state.model.state_dict(), "moments": moments}, buffer)
    data = buffer.getvalue()
    for i in range(0, len(data), PART):
        (folder / f"state.{i // PART}").write_bytes(data[i : i + PART])


def resume(state: State, folder: Path) -> None:
    """The opposite of save_state."""
    parts = sorted(folder.glob("state.*"), key=lambda part: int(part.suffix[1:]))
    saved = torch.load(io.BytesIO(b"".join(p.read_bytes() for p in parts)), map_location="cpu")
    state.model.load_state_dict(saved["weights"])
    for p, average, moments in zip(
        state.model.parameters(), state.average, saved["moments"], strict=True
    ):
        average.copy_(p.detach())
        state.optimizer.state[p] = {
            "step": torch.tensor(1000.0, device=p.device),
            **{key: value.float().to(p.device) for key, value in moments.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature DiffusionGemma.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time, compiling too")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=12, help="processes that make examples")
    parser.add_argument("--shrink", type=int, default=1, help="divide the batch size (for a CPU)")
    parser.add_argument("--eval", type=int, default=200, help="held-out prompts at the end")
    parser.add_argument("--resume", type=Path, help="folder with state.* files to go on from")
    parser.add_argument("--state", type=Path, help="folder to save state.* files in")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    began = time.monotonic()
    batches = load(args.seed, args.workers, args.shrink)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = start(device, args.lr)
    if args.resume:
        resume(state, args.resume)
    if not args.eager:
        torch._dynamo.config.recompile_limit = 64
        state.model.run = torch.compile(run_layer, dynamic=False)
    steps = train(state, batches, args, began)
    print(f"{steps} steps in {time.monotonic() - began:.0f} s")
    if args.state:
        save_state(state, args.state)
    for p, average in zip(state.model.parameters(), state.average, strict=True):
        p.data.copy_(average.bfloat16())
    save_checkpoint(state.model, args.out)
    if args.eval:
        state.model.run = run_layer
        for dtype in (torch.bfloat16, torch.float32):
            state.model.dtype = dtype
            result = {"dtype": str(dtype), "steps": steps, **score(state.model, args.eval)}
            for task in [*SCORED, "all"]:
                print(f"{task:12s} {result['exact'].get(task, float('nan')):.3f}")
            print(json.dumps(result))


if __name__ == "__main__":
    main()
