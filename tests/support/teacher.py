"""Teacher forcing: the reference and the engine denoise the same canvases, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Lesson:
    """What the reference says.  logits[k][s]: [C, V] f32 of canvas k at step s, softcapped."""

    prompt: list[int]
    canvases: list[list[torch.Tensor]]
    text: list[torch.Tensor]
    soft: list[list[torch.Tensor]] = field(default_factory=list)
    logits: list[list[torch.Tensor]] = field(default_factory=list)


def lesson(model, prompt, *, canvases=3, steps=4, seed=0, start=0, edit=None, pictures=None):
    """Run transformers' model on random canvases.

    start: position of the prompt's first token.  edit: may change the texts to commit in place.
    pictures: ``pixel_values`` and ``image_position_ids`` of the images in the prompt.
    """
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(seed)
    length, vocab = model.config.canvas_length, model.config.text_config.vocab_size

    def draw():
        return torch.randint(0, vocab, (length,), generator=generator)

    result = Lesson(prompt, [[draw() for _ in range(steps)] for _ in range(canvases)],
                    [draw() for _ in range(canvases)])
    if edit is not None:
        edit(result.text)
    cache = DynamicCache(config=model.config.text_config)
    pending, position = torch.tensor([prompt]), start
    decoder = model.model.decoder
    with torch.no_grad():
        for k in range(canvases):
            count = pending.shape[1]
            where = torch.arange(position, position + count)[None]
            shown = pictures if k == 0 and pictures else {}
            kinds = (pending == model.config.image_token_id).long() if shown else None
            masks = model.model.encoder.create_masks_for_generate(
                config=model.config, inputs_embeds=torch.empty(1, count, 0),
                attention_mask=None, past_key_values=cache, position_ids=where,
                mm_token_type_ids=kinds,
            )
            model.model.encoder(
                input_ids=pending, attention_mask=masks, position_ids=where, past_key_values=cache,
                **shown,
            )
            position += count
            here = torch.arange(position, position + length)[None]
            belief, said, softs = None, [], []
            for s in range(steps):
                out = model(
                    decoder_input_ids=result.canvases[k][s][None], past_key_values=cache,
                    decoder_position_ids=here, self_conditioning_logits=belief,
                ).logits
                said.append(out[0].clone())
                belief = (out / 0.7).to(decoder.embed_tokens.weight.dtype)
                scale = decoder.embed_tokens.embed_scale
                softs.append((belief.softmax(-1) @ decoder.embed_tokens.weight * scale)[0])
            result.logits.append(said)
            result.soft.append(softs)
            pending = result.text[k][None]
    return result


class Teacher:
    """Replaces the engine's own choices by a lesson's and keeps what the engine's model said."""

    def __init__(self, monkeypatch, lessons):
        from diffusiongemma_vllm.runner import sampler as module
        from diffusiongemma_vllm.state import SlotState, StepResult

        self.teach(lessons)
        self.softcap = None
        teacher = self

        def find(state, slot, base):
            seed = int(state.seed[slot])
            known = teacher.lessons.get(seed)
            if known is None:
                return None, 0, 0
            length = state.config.canvas_length
            return known, (int(base) - teacher.origin(known)) // length, seed

        def guess_tile(self, hidden, slots, _slot):
            for i, own in enumerate(slots):
                known, k, seed = find(self.state, own, self.state.base[own])
                s = int(self.state.step[own])
                if known is None or k >= len(known.text) or s >= len(known.canvases[k]):
                    continue
                logits = self.model.project(hidden[i]).float()
                logits = torch.tanh(logits / self.softcap) * self.softcap
                teacher.said[seed][k, s] = logits.clone()
            nothing = torch.zeros(hidden.shape[:2], dtype=torch.int64)
            return module.Guess(best=nothing, sample=nothing, entropy=nothing.float())

        def denoise(rules, canvas, guess, noise):
            return StepResult(tokens=noise, best=guess.best, held=canvas.held,
                              done=torch.zeros(len(canvas.step), dtype=torch.bool))

        apply, begin = SlotState.apply, SlotState.begin

        def forced_apply(state, slots, result, where):
            tokens, best, done = result.tokens.clone(), result.best.clone(), result.done.clone()
            soft = torch.zeros(len(slots), *state.soft.shape[1:])
            for i, slot in enumerate(slots.tolist()):
                known, k, _ = find(state, slot, state.base[slot])
                if not bool(where[i]):
                    continue
                if known is None or k >= len(known.text):
                    done[i] = True
                    continue
                s = int(state.step[slot])
                done[i] = s + 1 >= len(known.canvases[k])
                best[i] = known.text[k]
                soft[i] = known.soft[k][s]
                if not done[i]:
                    tokens[i] = known.canvases[k][s + 1]
            forced = StepResult(tokens=tokens, best=best, held=result.held, done=done)
            state.believe(slots, soft)
            apply(state, slots, forced, where)
            teacher.last = forced

        def forced_begin(state, slots, base, noise, where):
            noise = noise.clone()
            for i, slot in enumerate(slots.tolist()):
                known, k, _ = find(state, slot, base[i])
                if known is not None and k < len(known.text) and bool(where[i]):
                    noise[i] = known.canvases[k][0]
            begin(state, slots, base, noise, where)

        original = module.DiffusionSampler._denoise

        def forced_denoise(self, hidden, slots, slots_np, denoising):
            width = self.state.width[slots]
            guess, *_ = original(self, hidden, slots, slots_np, denoising)
            forced = teacher.last
            out = torch.where(denoising & forced.done, width, 0)
            return guess, forced.best, out

        monkeypatch.setattr(module, "denoise", denoise)
        monkeypatch.setattr(module.DiffusionSampler, "_guess_tile", guess_tile)
        monkeypatch.setattr(module.DiffusionSampler, "_denoise", forced_denoise)
        monkeypatch.setattr(SlotState, "apply", forced_apply)
        monkeypatch.setattr(SlotState, "begin", forced_begin)

    def teach(self, lessons):
        """Go on with these lessons (seed -> Lesson), and forget what was said of earlier ones."""
        self.lessons = lessons
        self.said = {seed: {} for seed in lessons}

    def origin(self, known):
        return len(known.prompt)

    def compare(self, tolerance=1e-4):
        """Largest error relative to the largest logit; argmax equal wherever the gap allows."""
        worst = 0.0
        for seed, known in self.lessons.items():
            for k, steps in enumerate(known.logits):
                for s, expected in enumerate(steps):
                    got = self.said[seed][k, s]
                    largest = expected.abs().max()
                    worst = max(worst, float((got - expected).abs().max() / largest))
                    top = expected.topk(2).values
                    clear = top[:, 0] - top[:, 1] > tolerance * largest
                    same = got.argmax(-1) == expected.argmax(-1)
                    assert same[clear].all(), f"argmax differs: {seed=} canvas {k} step {s}"
        assert worst <= tolerance, f"logits differ by {worst:.1e} of the largest"
        return worst
