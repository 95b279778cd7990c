"""The training objective: noise, self-conditioning, pinned text and the weighted cross-entropy.

Block diffusion (arXiv 2503.09573) with uniform noise, as transformers' sampler applies it: given
the clean context, each canvas token is replaced by a random one with probability t ~ U(0, 1) (one
example in four: t = 1, the sampler's first step) and the cross-entropy of the clean canvas is taken
on all positions. A conditioned step first predicts, without gradient, an equally or more noisy
canvas and feeds that back (self-conditioning, arXiv 2208.04202), its logits divided by a
temperature of the sampler's range, as the sampler does. Half of the conditioned examples then go on
from the canvas that the sampler would make of that prediction, its own mistakes included (scheduled
sampling, arXiv 1506.03099). Some examples keep a part of their canvas clean, so that pinned text is
filled around.

No function here waits for the device or takes a shape from the data.
"""

import torch
import torch.nn.functional as F
from loader import Batch
from model import Miniature
from sampler import Rules, accept
from torch import Tensor

PAD_WEIGHT, BALANCE_WEIGHT, TYPICAL_WEIGHT = 0.05, 0.002, 4.0
# padding this close behind an answer weighs as much as the answer: where it ends is part of it
NEAR = 24


def pinned(canvas: Tensor) -> Tensor:
    """canvas [B, C] -> [B, C] bool, what stays clean: nothing, a stretch or a random subset."""
    B, C = canvas.shape
    at = torch.arange(C, device=canvas.device)
    kind, start, size = torch.rand(3, B, 1, device=canvas.device)
    # most answers are short: aim the stretch at the first 64 places half of the time
    reach = C + (64 - C) * (kind < 0.06)
    stretch = (at >= start * reach) & (at < (start + size * 0.5) * reach)
    subset = torch.rand(B, C, device=canvas.device) < size
    return ((kind < 0.12) & stretch) | ((kind >= 0.12) & (kind < 0.2) & subset)


def corrupt(canvas: Tensor, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """canvas [B, C] -> the noisy canvas, one no less noisy, and what is clean in both [B, C]."""
    B, C = canvas.shape
    draw, more, jump, all_noise = torch.rand(4, B, 1, device=canvas.device)
    t = torch.maximum(draw, (all_noise < 0.25).float())
    earlier = t + (1 - t) * more * (jump < 0.5)
    clean = pinned(canvas)
    u = torch.rand(B, C, device=canvas.device).masked_fill(clean, 2.0)
    noise = torch.randint(vocab, (2, B, C), device=canvas.device)
    return (
        torch.where(u < t, noise[0], canvas), torch.where(u < earlier, noise[1], canvas), clean
    )  # fmt: skip


def sampled(noisy: Tensor, belief: Tensor, clean: Tensor, canvas: Tensor) -> Tensor:
    """`noisy` [B, C], half of its rows replaced by what the sampler makes of `belief`."""
    B, C, V = belief.shape
    accepted, _ = accept(belief, Rules.bound)
    gumbel = -torch.empty_like(belief).exponential_().log()
    drawn = torch.where(accepted, (belief + gumbel).argmax(-1), torch.randint_like(noisy, V))
    own = torch.rand(B, 1, device=noisy.device) < 0.5
    return torch.where(own, torch.where(clean, canvas, drawn), noisy)


def cross_entropy(logits: Tensor, canvas: Tensor, said: Tensor) -> Tensor:
    """Mean over examples: n tokens and the NEAR behind them n ** -0.5 each, padding less."""
    loss = F.cross_entropy(logits.flatten(0, 1), canvas.flatten(), reduction="none")
    real = torch.arange(canvas.shape[1], device=canvas.device) < said[:, None] + NEAR
    weight = (PAD_WEIGHT + (1 - PAD_WEIGHT) * real) * said[:, None].float() ** -0.5
    return (loss.view_as(weight) * weight).sum() / (len(canvas) * TYPICAL_WEIGHT)


def loss_of(model: Miniature, batch: Batch, conditioned: bool) -> Tensor:
    """The loss [] of one batch."""
    noisy, noisier, clean = corrupt(batch.canvas, model.sizes.vocab)
    cache, balance = model.encode(batch.context)
    belief = None
    if conditioned:
        with torch.no_grad():
            read_only = [(k.detach(), v.detach()) for k, v in cache]
            logits, _ = model(noisier, batch.lengths, read_only, None)
            belief = logits / (0.4 + 0.4 * torch.rand(len(logits), 1, 1, device=logits.device))
            noisy = sampled(noisy, belief, clean, batch.canvas)
    logits, more = model(noisy, batch.lengths, cache, belief)
    return cross_entropy(logits, batch.canvas, batch.said) + BALANCE_WEIGHT * (balance + more)
