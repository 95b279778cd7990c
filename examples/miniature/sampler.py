"""Batched sampling from the training twin by the shipped checkpoint's own rules.

Entropy-bound acceptance (arXiv 2505.24857), temperatures from 0.8 to 0.4, at most 48 steps; a
canvas is done when its best guess held still for a step and its mean entropy is under 0.0003: one
doubtful letter among 256 is no canvas to stop at (the large model's 0.005 lets it pass). As in
transformers, the output is the best guess, and the processed logits condition the next step.
"""

from dataclasses import dataclass

import torch
from model import Miniature
from tokens import PAD, STOP
from torch import Tensor


@dataclass(frozen=True)
class Rules:
    steps: int = 48
    t_min: float = 0.4
    t_max: float = 0.8
    bound: float = 0.1
    confidence: float = 0.0003


def accept(logits: Tensor, bound: float) -> Tensor:
    """logits [B, C, V] -> [B, C] bool, the surest tokens within the bound; and entropy [B, C]."""
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    ordered, index = entropy.sort(-1)
    within = ordered.cumsum(-1) - ordered <= bound
    return torch.zeros_like(within).scatter(-1, index, within), entropy


@torch.no_grad()
def sample_canvas(model: Miniature, context: Tensor, lengths: Tensor, rules: Rules):
    """context [B, L], lengths [B] -> best guess [B, C], steps taken [B]."""
    B, C, V = len(context), model.sizes.canvas, model.sizes.vocab
    device = context.device
    cache, _ = model.encode(context)
    canvas = torch.randint(V, (B, C), device=device)
    best, belief = torch.full_like(canvas, -1), None
    done = torch.zeros(B, dtype=torch.bool, device=device)
    taken = torch.zeros(B, dtype=torch.long, device=device)
    for left in range(rules.steps, 0, -1):
        logits, _ = model(canvas, lengths, cache, belief)
        belief = logits / (rules.t_min + (rules.t_max - rules.t_min) * left / rules.steps)
        taken += ~done
        guess = belief.argmax(-1)
        accepted, entropy = accept(belief, rules.bound)
        drawn = torch.distributions.Categorical(logits=belief).sample()
        canvas = torch.where(accepted, drawn, torch.randint(V, (B, C), device=device))
        stable = (guess == best).all(-1)
        best = torch.where(done[:, None], best, guess)
        done |= stable & (entropy.mean(-1) < rules.confidence)
        if done.all():
            break
    return best, taken


@torch.no_grad()
def sample(model: Miniature, prompts: list[list[int]], canvases: int = 4, rules: Rules = Rules()):
    """Answers (ids up to and with the stop token) and the denoise steps of each canvas."""
    device = model.decoder.norm.weight.device
    answers: list[list[int]] = [[] for _ in prompts]
    steps: list[list[int]] = [[] for _ in prompts]
    open_rows = list(range(len(prompts)))
    for _ in range(canvases):
        texts = [prompts[i] + answers[i] for i in open_rows]
        width = -(-max(map(len, texts)) // 64) * 64
        context = torch.tensor([t + [PAD] * (width - len(t)) for t in texts], device=device)
        lengths = torch.tensor([len(t) for t in texts], device=device)
        best, taken = sample_canvas(model, context, lengths, rules)
        still = []
        for i, row, count in zip(open_rows, best.tolist(), taken.tolist(), strict=True):
            steps[i].append(count)
            ends = [at for at, token in enumerate(row) if token in STOP]
            answers[i] += row[: ends[0] + 1] if ends else row
            still += [] if ends else [i]
        open_rows = still
        if not open_rows:
            break
    return answers, steps
