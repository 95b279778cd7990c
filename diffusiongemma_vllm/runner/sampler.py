"""The sampler of vLLM's V2 model runner: hidden states of a step in, committed tokens out."""

from __future__ import annotations

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
from diffusiongemma_vllm.denoise import rows
from diffusiongemma_vllm.denoise.noise import CANVAS, SAMPLE, counters
from diffusiongemma_vllm.denoise.soft_embed import soft_embed
from diffusiongemma_vllm.denoise.step import DenoiseRules, Guess, denoise
from diffusiongemma_vllm.model.rowwise import rowwise
from diffusiongemma_vllm.request import RequestOptions, request_options
from diffusiongemma_vllm.state import COMMIT, DENOISE, PREFILL, Canvases, SlotState

TILE_CANVASES = 4  # canvases whose [rows, vocabulary] logits are in memory at a time


class DiffusionSampler:
    """Denoises the canvases of a batch by one step and starts the canvases that are due.

    Reads a request's phase from the slot state, never from the host: a step may have been
    scheduled before the host knew that a canvas had settled, and is then the commit.
    """

    def __init__(
        self, config: DenoiseConfig, state: SlotState, model: Any, req_states: RequestState
    ) -> None:
        self.config = config
        self.rules = DenoiseRules.of(config)
        self.state = state
        self.model = model
        self.req_states = req_states
        self.softcap = float(model.text_config.final_logit_softcapping)
        self.filtered: dict[int, RequestOptions] = {}
        self.penalties_state = SimpleNamespace(output_bin_counts=None)  # read by the runner

    def add_request(self, slot: int, params: Any) -> None:
        options = request_options(params)
        self.state.add(slot, options)
        self.filtered.pop(slot, None)
        if options.filtered:
            self.filtered[slot] = options

    def apply_staged_writes(self) -> None:
        """Nothing is staged: ``add_request`` writes its slot."""

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
        if batch.num_draft_tokens:
            widths = np.diff(batch.cu_num_logits_np[: count + 1])
            canvases = int((widths > 0).sum())
            best, tokens = self._denoise(
                self._whole(hidden, widths[:canvases]), slots[:canvases],
                batch.idx_mapping_np[:canvases], denoising[:canvases],
            )
            sampled[:canvases] = best
            emitted[:canvases] = tokens
        elif hidden.shape[0]:
            self._rehearse(hidden)
        begins = prompt_done | (phase == COMMIT)
        self.state.begin(slots, ends, self._noise(slots, ends, torch.zeros_like(ends)), begins)
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=None,
            num_nans=None,
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
        noise = self._noise(slots, canvas.base, canvas.step + 1)
        result = denoise(self.rules, canvas, guess, noise)
        self.state.apply(slots, result, soft, denoising)
        length_out = torch.where(denoising & result.done, canvas.width, 0)
        return result.best.to(torch.int32), length_out.to(torch.int32)

    def _tiles(self, slots_np: np.ndarray) -> list[list[int]]:
        """Groups of canvases; those that filter their tokens are kept apart."""
        plain = [i for i, slot in enumerate(slots_np.tolist()) if slot not in self.filtered]
        others = [i for i, slot in enumerate(slots_np.tolist()) if slot in self.filtered]
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
        heat = self.rules.schedule(step) * self.state.temperature[own]
        temperature = heat.repeat_interleave(length, output_size=len(tile) * length)
        seed = self.state.seed[own].repeat_interleave(length, output_size=len(tile) * length)
        counter = counters(canvas.base[pick], step, length, SAMPLE).flatten()
        logits = self.model.project(hidden[pick].flatten(0, 1))
        softcap: float | None = self.softcap
        if int(slots_np[tile[0]]) in self.filtered:
            logits = self._filter(logits, temperature, [int(slots_np[i]) for i in tile])
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

    def _filter(self, logits: Tensor, temperature: Tensor, slots: list[int]) -> Tensor:
        """Softcap, temperature, top-k and top-p.   [R, V]  ->  [R, V] f32"""
        device, length = logits.device, self.config.canvas_length
        options = [self.filtered[slot] for slot in slots]
        top_k = torch.tensor([o.top_k for o in options], device=device)
        top_p = torch.tensor([o.top_p for o in options], device=device)
        ops = (
            rows.Softcap(self.softcap),
            rows.Temperature(temperature),
            rows.TopK(top_k.repeat_interleave(length)),
            rows.TopP(top_p.repeat_interleave(length)),
        )
        return rows.run(ops, logits.float())

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
