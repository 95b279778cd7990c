"""The sampler of vLLM's V2 model runner: hidden states of a step in, committed tokens out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.states import RequestState

from diffusiongemma_kernels.canvas_step import types as kernels
from diffusiongemma_kernels.row_stats.op import hash_uniform_tokens
from diffusiongemma_kernels.slots import Rows
from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.denoise import edits
from diffusiongemma_vllm.denoise.draws import draws
from diffusiongemma_vllm.denoise.edits import Scene
from diffusiongemma_vllm.denoise.health import health
from diffusiongemma_vllm.denoise.noise import CANVAS, counters, rolled
from diffusiongemma_vllm.denoise.reroll import Reroll
from diffusiongemma_vllm.denoise.rows import Softcap
from diffusiongemma_vllm.denoise.scores import Scores, score
from diffusiongemma_vllm.denoise.step import DenoiseRules, Guess, denoise
from diffusiongemma_vllm.denoise.walk import PATIENCE, Walk
from diffusiongemma_vllm.knobs import canvas_options
from diffusiongemma_vllm.request import RequestOptions
from diffusiongemma_vllm.runner.belief import believe
from diffusiongemma_vllm.runner.constraint import GrammarConstraint
from diffusiongemma_vllm.runner.drafts import watched
from diffusiongemma_vllm.runner.gpu_step import GpuStep
from diffusiongemma_vllm.runner.notes import notes
from diffusiongemma_vllm.runner.scores import gather
from diffusiongemma_vllm.runner.special import Serving, Special, filtered, special_of
from diffusiongemma_vllm.runner.whole import whole
from diffusiongemma_vllm.state import DENOISE, Canvases, SlotState, StepResult

WALK = Walk(threshold=0.1)
TILE_CANVASES = 4  # canvases whose [rows, vocabulary] logits are in memory at a time
# What takes most memory of what a request may ask.
MOST = RequestOptions(temperature=1.0, top_k=1, top_p=0.5, seed=0, repetition=2.0, frequency=1.0)


class DiffusionSampler:
    """Denoises the canvases of a batch by one step and starts the canvases that are due.

    Reads a request's phase from the slot state, never from the host: a step may have been
    scheduled before the host knew that a canvas had settled, and is then the commit.
    """

    def __init__(
        self, config: DenoiseConfig, state: SlotState, model: Any, req_states: RequestState,
        *, serving: Serving | None = None, logprobs: bool = True, gpu: GpuStep | None = None,
    ) -> None:
        """logprobs: tell log-probabilities, else logits.  gpu: the step in few launches."""
        self.config = config
        self.state = state
        self.model = model
        self.req_states = req_states
        self.serving = serving or Serving()
        self.logprobs = logprobs
        self.gpu = gpu
        self.softcap = float(model.text_config.final_logit_softcapping)
        self.special: dict[int, Special] = {}
        self.penalties_state = SimpleNamespace(output_bin_counts=None)  # read by the runner

    def add_request(self, slot: int, params: Any) -> None:
        asked = canvas_options(params.extra_args, self.config)
        special = self.serving.special(
            slot, params, asked, self.config.canvas_length, self.state.phase.device
        )
        self.state.add(slot, special.options, asked.rules)
        self._limit_steps(slot, special)
        self.special.pop(slot, None)
        if special.any:
            self.special[slot] = special

    def apply_staged_writes(self) -> None:
        """Only users' processors stage any: ``add_request`` writes its slot."""
        self.serving.processors.apply_staged_writes()

    def __call__(self, hidden: Tensor, batch: InputBatch) -> SamplerOutput:
        """hidden: [R, H], the rows of all canvases in the batch, request after request."""
        count, states = batch.num_reqs, self.req_states
        slots, slots_np = batch.idx_mapping[:count], batch.idx_mapping_np[:count]
        starts, ends = batch.query_start_loc[: count + 1], batch.seq_lens[:count]
        full, canvases = hidden[:0], 0
        if batch.num_draft_tokens:
            widths = np.diff(batch.cu_num_logits_np[: count + 1])
            canvases = int((widths > 0).sum())
            full = whole(hidden, widths[:canvases], self.config.canvas_length)
        elif hidden.shape[0]:
            self._rehearse(hidden)
        guess: Guess | None
        rolls = None
        watch = watched(self.special, batch, self.state, canvases)
        if self.gpu is not None and not self._steered(slots_np):
            guess = self._guess(full, slots[:canvases], slots_np[:canvases])
            text, lengths, rejected = self.gpu.advance(
                kernels.Guess(guess.best, guess.sample, guess.entropy), Rows(slots, starts, ends),
                states.prefill_len.gpu,
            )
        else:
            rows = starts.diff().long()
            rejected = torch.where(
                self.state.phase[slots] == DENOISE, rows - self.state.committed(slots, rows), 0
            )
            prompts_end = ends.long() >= states.prefill_len.gpu[slots]
            guess, text, lengths, rolls = self._advance(
                full, slots, slots_np, rows, torch.where(prompts_end, ends.long(), -1)
            )
        scores = self._scores(full, text, slots_np[:canvases])
        drafts = None
        if watch is not None and guess is not None:
            drafts = watch.drafts(guess, text, lengths, self._noise(*watch.drawn))
        return SamplerOutput(
            sampled_token_ids=text.to(torch.int32),
            logprobs_tensors=gather(scores, count, self.config.canvas_length),
            num_nans=self._told(full, slots_np[:canvases], rolls),
            num_sampled=lengths.to(torch.int32),
            num_rejected=rejected.to(torch.int32),
            sampling_mask_tensors=notes(drafts, self.model.expert_load.take()),
        )

    def _advance(
        self, full: Tensor, slots: Tensor, slots_np: np.ndarray, rows: Tensor, prompts: Tensor
    ) -> tuple[Guess | None, Tensor, Tensor, Tensor | None]:
        """Denoise the canvases ``full`` [K * C, H] of the first K of N requests, commit, begin.

        rows: [N] i64, of every request.  prompts: [N] i64, where prompts end, -1 where they do not.
        ->  guesses of the K; text [N, C], its length [N], both i64; how often canvases were drawn
        again, ``_rolls``
        """
        state, length = self.state, self.config.canvas_length
        canvases = full.shape[0] // length
        has_canvas = state.phase[slots] == DENOISE
        denoising = has_canvas & (rows > state.committed(slots, rows))
        text = torch.zeros(len(slots_np), length, dtype=torch.int64, device=full.device)
        lengths = torch.zeros_like(rows)
        state.commit(slots, rows)
        guess = None
        if canvases:
            own, own_np = slots[:canvases], slots_np[:canvases]
            guess, best, settled = self._denoise(full, own, own_np, denoising[:canvases])
            state.settle(own, best, settled)
            text[:canvases], lengths[:canvases] = best, settled
        base = torch.where(has_canvas, state.base[slots] + lengths, prompts)
        fresh = self._start(slots, slots_np, base, torch.zeros_like(base))
        rolls = self._rolls(slots, slots_np)
        state.begin(slots, base, fresh, (~has_canvas & (prompts >= 0)) | (lengths > 0))
        return guess, text, lengths, rolls

    def _steered(self, slots_np: np.ndarray) -> bool:
        """Whether a request's canvases begin or end in another way than all others'."""
        return any(
            slot in self.special and self.special[slot].steered for slot in slots_np.tolist()
        )

    def _guess(self, hidden: Tensor, slots: Tensor, slots_np: np.ndarray) -> Guess:
        """What the logits say of N canvases, whose beliefs the state keeps.  hidden: [N * C, H]"""
        shape, device = (len(slots_np), self.config.canvas_length), hidden.device
        hidden = hidden.view(*shape, hidden.shape[-1])
        tiles = self._tiles(slots_np)
        if len(tiles) == 1:
            return self._guess_tile(hidden, slots, int(slots_np[0]))
        guess = Guess(
            best=torch.empty(shape, dtype=torch.int64, device=device),
            sample=torch.empty(shape, dtype=torch.int64, device=device),
            entropy=torch.empty(shape, device=device),
        )
        for tile in tiles:
            pick: slice | Tensor = slice(tile[0], tile[-1] + 1)
            if tile[-1] - tile[0] + 1 != len(tile):
                pick = torch.tensor(tile, device=device)
            part = self._guess_tile(hidden[pick], slots[pick], int(slots_np[tile[0]]))
            guess.best[pick] = part.best
            guess.sample[pick] = part.sample
            guess.entropy[pick] = part.entropy
        return guess

    def _denoise(
        self, hidden: Tensor, slots: Tensor, slots_np: np.ndarray, denoising: Tensor
    ) -> tuple[Guess, Tensor, Tensor]:
        """One step of N canvases.  hidden: [N * C, H]  ->  text [N, C], its length [N], both i64

        The length is 0 for a canvas that is not settled yet; the guesses come first.
        """
        guess = self._guess(hidden, slots, slots_np)
        # A row of NaN has any number for a token, and the next forward would look it up.
        for tokens in (guess.best, guess.sample):
            tokens.clamp_(0, self.config.vocab_size - 1)
        canvas = self.state.gather(slots)
        noise = self._noise(slots, canvas.base, rolled(canvas.step + 1, canvas.roll))
        rules = DenoiseRules.of(self.state.knobs.at(slots))
        result = denoise(rules, canvas, guess, noise)
        lengths = torch.where(denoising & result.done, canvas.width, 0)
        by_canvas = hidden.view(*canvas.tokens.shape, -1)
        result = self._walk(by_canvas, canvas, slots_np, result, lengths)
        self.state.apply(slots, result, denoising)
        if self._rerolls(slots_np):
            empty = self._empty(canvas, slots_np, result.best) & (lengths > 0)
            lengths = torch.where(empty, 0, lengths)
            fresh = self._start(slots, slots_np, canvas.base, canvas.roll + 1)
            self.state.again(slots, fresh, empty)
        return guess, result.best, lengths

    def _walk(
        self, hidden: Tensor, canvas: Canvases, slots_np: np.ndarray, result: StepResult,
        lengths: Tensor,
    ) -> StepResult:
        """Settled canvases of constrained requests: the text that is allowed, in place of the best.

        lengths: [N] i64, tokens that go out; written in place.  Waits for the device, if any
        request is constrained.
        """
        mine = [i for i, slot in enumerate(slots_np.tolist()) if self._constraint(slot)]
        if not mine or not any((lengths[mine] > 0).tolist()):
            return result
        best = result.best.clone()
        for i in mine:
            slot, width = int(slots_np[i]), int(lengths[i])
            constraint, special = self._constraint(slot), self.special.get(slot)
            if constraint is None or special is None or width == 0:
                continue
            logits = self._edit(self._capped(self.model.project(hidden[i])), canvas, slot, i)
            shorts = constraint.shorts
            least, close = PATIENCE.least(shorts), PATIENCE.close(shorts)
            text = WALK(constraint, logits, width, least, close)
            best[i, : len(text)] = torch.tensor(text, device=best.device)
            lengths[i] = len(text)
            constraint.shorts = PATIENCE.count(shorts, len(text))
            self._limit_steps(slot, special)
        return replace(result, best=best)

    def _limit_steps(self, slot: int, special: Special) -> None:
        """Fewer for the next canvas of a constrained request whose last ones gave little text."""
        if special.constraint is not None:
            steps = PATIENCE(special.rules.last_step, special.constraint.shorts)
            self.state.limit_steps(slot, steps)

    def _rerolls(self, slots_np: np.ndarray) -> dict[int, Reroll]:
        """Those that the requests of a batch ask for, by their place."""
        specials = (self.special.get(slot) for slot in slots_np.tolist())
        return {i: one.reroll for i, one in enumerate(specials) if one and one.reroll}

    def _empty(self, canvas: Canvases, slots_np: np.ndarray, text: Tensor) -> Tensor:
        """Which canvases ``text`` [N, C] must be drawn again, once settled.   ->  [N] bool"""
        found = torch.zeros_like(canvas.roll, dtype=torch.bool)
        for i, reroll in self._rerolls(slots_np).items():
            first = canvas.base[i] == int(self.req_states.prompt_len.np[slots_np[i]])
            found[i] = first & reroll(text[i], canvas.roll[i])
        return found

    def _told(self, hidden: Tensor, own: np.ndarray, rolls: Tensor | None) -> Tensor | None:
        """How often each request's canvas was drawn again, or NaN where its logits have any, or Inf
        where its constraint is stuck, as vLLM's count of NaNs, the one number that it carries to
        the scheduler.  own: slots of the canvases, which come first.   ->  [N] f32, or fewer
        """
        if not len(own):
            return rolls
        found = health(hidden.view(len(own), self.config.canvas_length, -1))
        for i, slot in enumerate(own.tolist()):
            if slot in self.special and self.special[slot].stuck:
                found[i] += torch.inf
        if rolls is None:
            return found
        rolls[: len(own)] += found
        return rolls

    def _rolls(self, slots: Tensor, slots_np: np.ndarray) -> Tensor | None:
        """How often each canvas of a batch was drawn again, [N] f32; None where none can be."""
        return self.state.roll[slots].float() if self._rerolls(slots_np) else None

    def _constraint(self, slot: int) -> GrammarConstraint | None:
        special = self.special.get(slot)
        if special is None or special.constraint is None:
            return None
        constraint = special.constraint
        if not constraint.started:
            states = self.req_states
            prompt, known = int(states.prompt_len.np[slot]), int(states.prefill_len.np[slot])
            text = states.all_token_ids.gpu[slot, :known].tolist()
            constraint.start(text[:prompt], text[prompt:])
        return constraint

    def _tiles(self, slots_np: np.ndarray) -> list[list[int]]:
        """Groups of canvases; one with distributions of its own is alone: it takes more memory."""
        bent = {slot for slot, special in self.special.items() if special.bends}
        plain = [i for i, slot in enumerate(slots_np.tolist()) if slot not in bent]
        others = [i for i, slot in enumerate(slots_np.tolist()) if slot in bent]
        starts = range(0, len(plain), TILE_CANVASES)
        return [plain[i : i + TILE_CANVASES] for i in starts] + [[one] for one in others]

    def _guess_tile(self, hidden: Tensor, slots: Tensor, slot: int) -> Guess:
        """Those of canvases that fit into memory.  hidden: [K, C, H]  slot: of the first."""
        shape = hidden.shape[:2]
        draw = draws(self.state, slots) if self.gpu is None else self.gpu.draws(slots)
        temperature, seed, counter = draw
        flat = hidden.flatten(0, 1)
        logits: Tensor | None = None
        softcap: float | None = self.softcap
        bent = self.special.get(slot)
        if bent is not None and bent.bends:
            logits = self._edit(
                self._capped(self.model.project(flat)), self.state.gather(slots), slot, 0
            )
            logits = filtered(logits, temperature, bent.options)
            temperature, softcap = torch.ones_like(temperature), None
        stats, mixed = believe(
            self.model, flat, logits, temperature, seed, counter, softcap
        )
        self.state.believe(slots, mixed.view(hidden.shape))
        best, sample = stats.argmax.view(shape), stats.sample.view(shape)
        sample = torch.where(self.state.greedy[slots][:, None], best, sample)
        return Guess(best=best, sample=sample, entropy=stats.entropy.view(shape))

    def _capped(self, logits: Tensor) -> Tensor:
        """[R, V]  ->  [R, V] f32"""
        return Softcap(self.softcap)(logits.float())

    def _edit(self, logits: Tensor, canvas: Canvases, slot: int, place: int) -> Tensor:
        """What a request makes of the softcapped logits [C, V] of its canvas, number ``place``."""
        scene = self._scene(slot, canvas.base[place], canvas.best[place], canvas.width[place])
        logits = edits.run(self.special[slot].edits, logits, scene)
        constraint = self._constraint(slot)
        return logits if constraint is None else constraint.known(logits.device)(logits, scene)

    def _scene(self, slot: int, base: Tensor, guess: Tensor, width: Tensor) -> Scene:
        prompt = int(self.req_states.prompt_len.np[slot])
        return Scene(self.req_states.all_token_ids.gpu[slot], base, prompt, guess, width)

    def _scores(
        self, hidden: Tensor, text: Tensor, slots_np: np.ndarray
    ) -> list[Scores | None]:
        """Log-probabilities of ``text`` [N, C] integers, for the requests that ask."""
        length = self.config.canvas_length
        parts: list[Scores | None] = []
        for i, slot in enumerate(slots_np.tolist()):
            special = self.special.get(slot)
            if special is None or special.options.scores is None:
                parts.append(None)
                continue
            logits = self._capped(self.model.project(hidden[i * length : (i + 1) * length]))
            parts.append(
                score(
                    logits, text[i].long(), likely=special.options.scores, ids=special.score_ids,
                    normalized=self.logprobs,
                )
            )
        return parts

    def _start(
        self, slots: Tensor, slots_np: np.ndarray, base: Tensor, roll: Tensor
    ) -> Tensor:
        """What canvases at ``base`` [N] start from the ``roll``-th [N] time.   ->  [N, C] i64"""
        tokens = self._noise(slots, base, rolled(torch.zeros_like(base), roll))
        for i, slot in enumerate(slots_np.tolist()):
            special = self.special.get(slot)
            if special is None:
                continue
            scene = self._scene(slot, base[i], tokens[i], base[i])
            if special.start is not None:
                tokens[i] = torch.where(base[i] == scene.prompt, special.start, tokens[i])
            if special.pin is not None:
                held = special.pin.at(scene)
                tokens[i] = torch.where(held >= 0, held, tokens[i])
        return tokens

    def _noise(self, slots: Tensor, base: Tensor, step: Tensor) -> Tensor:
        """Uniform tokens for the canvases at ``base`` [N].   ->  [N, C] i64"""
        counter = counters(base, step, self.config.canvas_length, CANVAS)
        seed = self.state.seed[slots][:, None].expand_as(counter).contiguous()
        return hash_uniform_tokens(seed, counter, self.config.vocab_size)

    def _rehearse(self, hidden: Tensor) -> None:
        """Use as much memory as a step will, for vLLM's profile of the peak."""
        count = min(TILE_CANVASES, self.state.phase.shape[0])
        length = self.config.canvas_length
        slots = torch.arange(count, device=hidden.device)
        nobody = torch.zeros(count, dtype=torch.bool, device=hidden.device)
        blank = hidden.new_zeros(count * length, hidden.shape[1])
        self._denoise(blank, slots, np.arange(count), nobody)
        asked = canvas_options(None, self.config)
        self.special[0] = special_of(MOST, asked, None, None, length, hidden.device)
        self._denoise(blank[:length], slots[:1], np.arange(1), nobody[:1])
        del self.special[0]
