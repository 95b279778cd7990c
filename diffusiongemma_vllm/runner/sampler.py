"""The sampler of vLLM's V2 model runner: hidden states of a step in, committed tokens out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.states import RequestState

from diffusiongemma_kernels.row_probs.op import row_probs
from diffusiongemma_kernels.row_stats.op import hash_uniform_tokens, row_stats
from diffusiongemma_vllm.config import DenoiseConfig
from diffusiongemma_vllm.denoise import edits, rows
from diffusiongemma_vllm.denoise.edits import Scene
from diffusiongemma_vllm.denoise.noise import CANVAS, SAMPLE, counters, rolled
from diffusiongemma_vllm.denoise.reroll import Reroll
from diffusiongemma_vllm.denoise.schedule import LinearSchedule
from diffusiongemma_vllm.denoise.scores import Scores, score
from diffusiongemma_vllm.denoise.soft_embed import soft_embed
from diffusiongemma_vllm.denoise.step import DenoiseRules, Guess, denoise
from diffusiongemma_vllm.denoise.walk import PATIENCE, Walk
from diffusiongemma_vllm.knobs import canvas_options
from diffusiongemma_vllm.model.rowwise import rowwise
from diffusiongemma_vllm.request import RequestOptions, request_options
from diffusiongemma_vllm.runner.constraint import SHORTS, GrammarConstraint
from diffusiongemma_vllm.runner.edits import ThoughtMarks
from diffusiongemma_vllm.runner.processors import Processors
from diffusiongemma_vllm.runner.scores import gather
from diffusiongemma_vllm.runner.special import Special, special_of
from diffusiongemma_vllm.state import (
    COMMIT,
    DENOISE,
    PREFILL,
    Canvases,
    SlotState,
    StepResult,
)

WALK = Walk(threshold=0.1)
TILE_CANVASES = 4  # canvases whose [rows, vocabulary] logits are in memory at a time


class DiffusionSampler:
    """Denoises the canvases of a batch by one step and starts the canvases that are due.

    Reads a request's phase from the slot state, never from the host: a step may have been
    scheduled before the host knew that a canvas had settled, and is then the commit.
    """

    def __init__(
        self, config: DenoiseConfig, state: SlotState, model: Any, req_states: RequestState,
        *, marks: ThoughtMarks | None = None, logprobs: bool = True,
        constrain: Callable[[Any], GrammarConstraint | None] = lambda params: None,
        processors: Processors | None = None,
    ) -> None:
        """marks: how thoughts are closed.  logprobs: tell log-probabilities, else logits.

        constrain: makes the constraint that a request's parameters ask for.  processors: the
        server's own.
        """
        self.config = config
        self.state = state
        self.model = model
        self.req_states = req_states
        self.marks = marks
        self.logprobs = logprobs
        self.constrain = constrain
        self.processors = processors or Processors(())
        self.softcap = float(model.text_config.final_logit_softcapping)
        self.special: dict[int, Special] = {}
        self.penalties_state = SimpleNamespace(output_bin_counts=None)  # read by the runner

    def add_request(self, slot: int, params: Any) -> None:
        options = request_options(params)
        asked = canvas_options(params.extra_args, self.config)
        self.state.add(slot, options, asked.rules)
        special = special_of(
            options, asked, self.constrain(params), self.marks, self.config.canvas_length,
            self.state.phase.device, self.processors.add_request(slot, params),
        )
        if special.constraint is not None:
            special.constraint.shorts = int((params.extra_args or {}).get(SHORTS, 0))
            steps = PATIENCE(asked.rules.last_step, special.constraint.shorts)
            self.state.knobs.last_step[slot] = steps
        self.special.pop(slot, None)
        if special.any:
            self.special[slot] = special

    def apply_staged_writes(self) -> None:
        """Only users' processors stage any: ``add_request`` writes its slot."""
        self.processors.apply_staged_writes()

    def __call__(self, hidden: Tensor, batch: InputBatch) -> SamplerOutput:
        """hidden: [R, H], the rows of all canvases in the batch, request after request."""
        count, length = batch.num_reqs, self.config.canvas_length
        slots = batch.idx_mapping[:count]
        starts = batch.query_start_loc[: count + 1].long()
        ends = batch.seq_lens[:count].long()
        phase = self.state.phase[slots]
        denoising = phase == DENOISE
        prompt_done = (phase == PREFILL) & (ends >= self.req_states.prefill_len.gpu[slots])
        sampled = torch.zeros(count, length, dtype=torch.int32, device=hidden.device)
        emitted = torch.zeros(count, dtype=torch.int32, device=hidden.device)
        scores = None
        if batch.num_draft_tokens:
            widths = np.diff(batch.cu_num_logits_np[: count + 1])
            canvases = int((widths > 0).sum())
            whole = self._whole(hidden, widths[:canvases])
            own = batch.idx_mapping_np[:canvases]
            best, tokens = self._denoise(whole, slots[:canvases], own, denoising[:canvases])
            sampled[:canvases] = best
            emitted[:canvases] = tokens
            scores = gather(self._scores(whole, best, own), count, length)
        elif hidden.shape[0]:
            self._rehearse(hidden)
        begins = prompt_done | (phase == COMMIT)
        never = torch.zeros_like(ends)
        fresh = self._start(slots, batch.idx_mapping_np[:count], ends, never)
        self.state.begin(slots, ends, fresh, begins)
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=scores,
            num_nans=self._rolls(slots, batch.idx_mapping_np[:count]),
            num_sampled=emitted,
            num_rejected=torch.where(denoising, starts.diff(), 0).to(torch.int32),
        )

    def _whole(self, hidden: Tensor, widths: np.ndarray) -> Tensor:
        """[R, H], canvases of ``widths`` rows  ->  [N * C, H], short canvases padded."""
        length = self.config.canvas_length
        if (widths == length).all():
            return hidden
        ends = np.cumsum(widths)
        whole = hidden.new_zeros(len(widths) * length, hidden.shape[1])
        for i, (width, end) in enumerate(zip(widths.tolist(), ends.tolist(), strict=True)):
            whole[i * length : i * length + width] = hidden[end - width : end]
        return whole

    def _denoise(
        self, hidden: Tensor, slots: Tensor, slots_np: np.ndarray, denoising: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step of N canvases.  hidden: [N * C, H]  ->  text [N, C] i32, its length [N] i32

        The length is 0 for a canvas that is not settled yet.
        """
        length = self.config.canvas_length
        canvas = self.state.gather(slots)
        hidden = hidden.view(len(slots_np), length, -1)
        guess = Guess(
            best=torch.empty_like(canvas.tokens),
            sample=torch.empty_like(canvas.tokens),
            entropy=torch.empty(canvas.tokens.shape, device=hidden.device),
        )
        soft = torch.empty_like(hidden)
        for tile in self._tiles(slots_np):
            self._guess_tile(hidden, canvas, slots, slots_np, tile, guess, soft)
        # A row of NaN has any number for a token, and the next forward would look it up.
        for tokens in (guess.best, guess.sample):
            tokens.clamp_(0, self.config.vocab_size - 1)
        noise = self._noise(slots, canvas.base, rolled(canvas.step + 1, canvas.roll))
        rules = DenoiseRules.of(self.state.knobs.at(slots))
        result = denoise(rules, canvas, guess, noise)
        lengths = torch.where(denoising & result.done, canvas.width, 0)
        result = self._walk(hidden, canvas, slots_np, result, lengths)
        self.state.apply(slots, result, soft, denoising)
        if self._rerolls(slots_np):
            empty = self._empty(canvas, slots_np, result.best) & (lengths > 0)
            lengths = torch.where(empty, 0, lengths)
            fresh = self._start(slots, slots_np, canvas.base, canvas.roll + 1)
            self.state.again(slots, fresh, empty)
        return result.best.to(torch.int32), lengths.to(torch.int32)

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
            text = WALK(constraint, logits, width, PATIENCE.ease(constraint.shorts))
            best[i, : len(text)] = torch.tensor(text, device=best.device)
            lengths[i] = len(text)
            constraint.shorts = PATIENCE.count(constraint.shorts, len(text))
            steps = PATIENCE(special.rules.last_step, constraint.shorts)
            self.state.knobs.last_step[slot] = steps
        return replace(result, best=best)

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

    def _rolls(self, slots: Tensor, slots_np: np.ndarray) -> Tensor | None:
        """How often each canvas of a batch was drawn again, [N] i32; None where none can be.

        vLLM takes it for a count of NaNs, which is the one number a request that it carries to the
        scheduler.
        """
        return self.state.roll[slots].to(torch.int32) if self._rerolls(slots_np) else None

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
        """Groups of canvases; those with distributions of their own are kept apart."""
        bent = {slot for slot, special in self.special.items() if special.bends}
        plain = [i for i, slot in enumerate(slots_np.tolist()) if slot not in bent]
        others = [i for i, slot in enumerate(slots_np.tolist()) if slot in bent]
        return [
            group[i : i + TILE_CANVASES]
            for group in (plain, others)
            for i in range(0, len(group), TILE_CANVASES)
        ]

    def _guess_tile(
        self, hidden: Tensor, canvas: Canvases, slots: Tensor, slots_np: np.ndarray,
        tile: list[int], guess: Guess, soft: Tensor,
    ) -> None:
        """Fill ``guess`` and ``soft`` for the canvases ``tile``."""
        length = self.config.canvas_length
        pick: slice | Tensor = slice(tile[0], tile[-1] + 1)
        if tile[-1] - tile[0] + 1 != len(tile):
            pick = torch.tensor(tile, device=hidden.device)
        step, own = canvas.step[pick], slots[pick]
        knobs = self.state.knobs.at(own)
        schedule = LinearSchedule(knobs.t_min, knobs.t_max, knobs.max_steps)
        heat = schedule(step) * self.state.temperature[own]
        temperature = heat.repeat_interleave(length, output_size=len(tile) * length)
        seed = self.state.seed[own].repeat_interleave(length, output_size=len(tile) * length)
        draw = rolled(step, canvas.roll[pick])
        counter = counters(canvas.base[pick], draw, length, SAMPLE).flatten()
        logits = self.model.project(hidden[pick].flatten(0, 1))
        softcap: float | None = self.softcap
        special = [self.special.get(int(slots_np[i])) for i in tile]
        if special[0] is not None and special[0].bends:
            logits = self._capped(logits)
            for i, place in enumerate(tile):
                mine = slice(i * length, (i + 1) * length)
                logits[mine] = self._edit(logits[mine], canvas, int(slots_np[place]), place)
            logits = self._filter(logits, temperature, [one.options for one in special if one])
            temperature, softcap = torch.ones_like(temperature), None
        stats = row_stats(logits, temperature, seed, counter, softcap=softcap)
        weight = self.model.embedding
        probs = row_probs(
            logits, temperature, stats.logsumexp, softcap=softcap, dtype=weight.dtype
        )
        mixed = rowwise(lambda p: soft_embed(p, weight, self.model.model.embed_scale), probs)
        shape = (len(tile), length)
        best, sample = stats.argmax.view(shape), stats.sample.view(shape)
        guess.best[pick] = best
        guess.sample[pick] = torch.where(self.state.greedy[own][:, None], best, sample)
        guess.entropy[pick] = stats.entropy.view(shape)
        soft[pick] = mixed.view(*shape, -1)

    def _capped(self, logits: Tensor) -> Tensor:
        """[R, V]  ->  [R, V] f32"""
        return rows.Softcap(self.softcap)(logits.float())

    def _edit(self, logits: Tensor, canvas: Canvases, slot: int, place: int) -> Tensor:
        """What a request makes of the softcapped logits [C, V] of its canvas, number ``place``."""
        scene = self._scene(slot, canvas.base[place], canvas.best[place], canvas.width[place])
        logits = edits.run(self.special[slot].edits, logits, scene)
        constraint = self._constraint(slot)
        return logits if constraint is None else constraint.known(logits.device)(logits, scene)

    def _scene(self, slot: int, base: Tensor, guess: Tensor, width: Tensor) -> Scene:
        prompt = int(self.req_states.prompt_len.np[slot])
        return Scene(self.req_states.all_token_ids.gpu[slot], base, prompt, guess, width)

    def _filter(
        self, logits: Tensor, temperature: Tensor, options: list[RequestOptions]
    ) -> Tensor:
        """Temperature, min-p, top-k and top-p.   [R, V] f32  ->  [R, V] f32"""
        device, length = logits.device, self.config.canvas_length

        def each(name: str) -> Tensor:
            value = torch.tensor([getattr(one, name) for one in options], device=device)
            return value.repeat_interleave(length)

        ops: list[rows.RowOp] = [rows.Temperature(temperature)]
        if any(one.min_p for one in options):
            ops.append(rows.MinP(each("min_p")))
        if any(one.top_k or one.top_p < 1.0 for one in options):
            ops += [rows.TopK(each("top_k")), rows.TopP(each("top_p"))]
        return rows.run(ops, logits)

    def _scores(
        self, hidden: Tensor, text: Tensor, slots_np: np.ndarray
    ) -> list[Scores | None]:
        """Log-probabilities of ``text`` [N, C], for the requests that ask."""
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
        shape = (count * self.config.canvas_length,)
        slots = torch.arange(count, device=hidden.device)
        nobody = torch.zeros(count, dtype=torch.bool, device=hidden.device)
        self._denoise(hidden.new_zeros(*shape, hidden.shape[1]), slots, np.arange(count), nobody)
