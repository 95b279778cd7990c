import torch
from torch import Tensor

from diffusiongemma_kernels import noise
from diffusiongemma_kernels.canvas_step.types import Guess, Outcome, Rules
from diffusiongemma_kernels.slots import DENOISE, Rows, Slots


def canvas_step(
    guess: Guess, rows: Rows, state: Slots, rules: Rules, prefill_len: Tensor, *, vocab_size: int,
    limit: int,
) -> Outcome:
    N, C = rows.slots.shape[0], state.tokens.shape[1]
    text = torch.zeros(N, C, dtype=torch.int32)
    length, rejected = torch.zeros(2, N, dtype=torch.int32)

    def fresh(s: int, step: int, roll: int) -> Tensor:
        position = state.base[s] + torch.arange(C)
        counter = (position << 20) | ((step | (roll << 14)) << 1) | 1
        return noise.uniform_tokens(state.seed[s].expand(C), counter, vocab_size)

    for i, s in enumerate(rows.slots.tolist()):
        count = int(rows.starts[i + 1] - rows.starts[i])
        has_canvas = bool(state.phase[s] == DENOISE)
        committed = min(int(state.pending[s]), count)
        state.pending[s] -= committed
        if has_canvas:
            rejected[i] = count - committed
        if has_canvas and count > committed and i < guess.best.shape[0]:
            width = int(state.width[s])
            best = guess.best[i].clamp(0, vocab_size - 1)
            sample = guess.sample[i].clamp(0, vocab_size - 1)
            entropy = guess.entropy[i, :width]
            ordered, order = entropy.sort(stable=True)
            accepted = torch.zeros(C, dtype=torch.bool)
            accepted[order] = ordered.cumsum(0) - ordered <= rules.entropy_bound[s]
            step = int(state.step[s]) + 1
            again = fresh(s, step, int(state.roll[s]))
            state.tokens[s] = torch.where(accepted, sample, again)
            same = torch.equal(best[:width], state.best[s, :width])
            state.held[s] = state.held[s] + 1 if same else 0
            state.best[s], state.step[s] = best, step
            text[i] = best
            calm = state.held[s] >= rules.stability_steps[s]
            calm = calm and entropy.sum() / max(width, 1) < rules.confidence[s]
            if calm or step >= rules.last_step[s]:
                length[i] = width
                state.text[s], state.pending[s] = best, width
                state.base[s] += width
        elif not has_canvas and rows.ends[i] >= prefill_len[s]:
            state.base[s] = rows.ends[i]
        else:
            continue
        if length[i] or not has_canvas:
            state.phase[s] = DENOISE
            state.step[s] = state.held[s] = state.roll[s] = 0
            state.best[s] = -1
            room = min(limit - int(state.base[s]), int(rules.canvas_length[s]))
            state.width[s] = max(room, 0)
            state.tokens[s] = fresh(s, 0, 0)
    return Outcome(text, length, rejected)
