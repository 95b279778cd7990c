"""The kernels around a forward: canvases of 256 tokens, rows of 2,816 numbers."""

from collections.abc import Iterator

import torch
from timed import Timed

from diffusiongemma_kernels.canvas_rows.op import draw_rows, fill_rows
from diffusiongemma_kernels.canvas_rows.types import Heat
from diffusiongemma_kernels.canvas_step.op import canvas_step
from diffusiongemma_kernels.canvas_step.types import Guess, Rules
from diffusiongemma_kernels.slots import DENOISE, Rows, Slots

VOCAB = 262144
BF16 = torch.bfloat16


def canvases(count: int) -> tuple[Rows, Slots]:
    """So many canvases of 256 tokens at their fourth step."""
    tokens = torch.randint(0, VOCAB, (count, 256), device="cuda")
    zero = torch.zeros(count, dtype=torch.int64, device="cuda")
    four, width = zero + 4, zero + 256
    state = Slots(
        zero.to(torch.int32) + DENOISE, tokens, zero, tokens.clone(), tokens.clone(), width, width,
        four, zero.clone(), zero.clone(), torch.arange(count, device="cuda"),
    )
    starts = torch.arange(0, 256 * count + 1, 256, dtype=torch.int32, device="cuda")
    ends = torch.full((count,), 768, dtype=torch.int32, device="cuda")
    return Rows(torch.arange(count, device="cuda"), starts, ends), state


def canvas_rows(_sweep: bool) -> Iterator[Timed]:
    for count in (1, 8, 32):
        rows, state = canvases(count)
        beliefs = torch.randn(count, 256, 2816, dtype=BF16, device="cuda")
        soft, flags = beliefs.flatten(0, 1).clone(), torch.ones(256 * count, device="cuda").bool()
        ids = torch.zeros(256 * count, dtype=torch.int32, device="cuda")

        def run(rows=rows, state=state, beliefs=beliefs, ids=ids, soft=soft, flags=flags):
            fill_rows(rows, state, beliefs, ids, soft, flags)

        yield Timed(f"{count} canvases", run, bytes=2 * beliefs.numel() * 2)
        real = torch.rand(count, dtype=torch.float64, device="cuda")
        heat = Heat(real, real + 1, state.step + 44, real.float())

        def draw(rows=rows, state=state, heat=heat):
            draw_rows(rows.slots, state, heat)

        yield Timed(f"{count} canvases, draws", draw, bytes=20 * len(ids))


def steps(_sweep: bool) -> Iterator[Timed]:
    for count in (1, 8, 32):
        rows, state = canvases(count)
        guess = Guess(state.best + 1, state.tokens.clone(), torch.rand(count, 256, device="cuda"))
        whole, real = torch.full_like(state.step, 1 << 40), torch.full((count,), 0.1).cuda()
        rules = Rules(state.width.clone(), whole, whole, real, real)
        prefill = torch.zeros(count, dtype=torch.int32, device="cuda")

        def run(guess=guess, rows=rows, state=state, rules=rules, prefill=prefill):
            canvas_step(guess, rows, state, rules, prefill, vocab_size=VOCAB, limit=1 << 18)

        yield Timed(f"{count} canvases", run, bytes=6 * 8 * guess.best.numel())
