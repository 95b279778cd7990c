"""The engine's logits against transformers', canvas by canvas and step by step."""

import pytest
import torch
from engine import Forwards, ask, chunked, serve, squeezed, texts
from teacher import Teacher, lesson

pytestmark = pytest.mark.engine

TOLERANCE = 1e-4  # of the largest logit; seen: 2e-6


def asks(lessons):
    return [ask(one.prompt, max_tokens=96, seed=seed) for seed, one in lessons.items()]


def check(teacher, outputs):
    """Every canvas's text went out, and every logit is the reference's."""
    expected = [torch.cat(one.text).tolist() for one in teacher.lessons.values()]
    assert texts(outputs) == expected
    worst = teacher.compare(TOLERANCE)
    print(f"largest error: {worst:.1e} of the largest logit")


@pytest.fixture
def teacher(monkeypatch, lessons):
    return Teacher(monkeypatch, lessons)


def test_three_canvases(llm, teacher):
    check(teacher, serve(llm, asks(teacher.lessons)))


def test_prefix_cached(llm, teacher):
    serve(llm, asks(teacher.lessons))
    teacher.teach(teacher.lessons)
    outputs = serve(llm, asks(teacher.lessons))
    # All of the prompt but the last token, in whole blocks of 16.
    assert [output.num_cached_tokens for output in outputs] == [16, 64, 144]
    check(teacher, outputs)


def test_a_prompt_that_extends_a_cached_one(llm, monkeypatch, reference, prompts):
    known = lesson(reference, prompts(70), seed=70)
    longer = lesson(reference, known.prompt + prompts(30), seed=100)
    teacher = Teacher(monkeypatch, {70: known})
    serve(llm, asks(teacher.lessons))
    teacher.teach({100: longer})
    outputs = serve(llm, asks(teacher.lessons))
    assert outputs[0].num_cached_tokens == 64
    check(teacher, outputs)


def test_chunked_prefill(llm, teacher, monkeypatch):
    forwards = Forwards(monkeypatch)
    with chunked(llm, 32):
        outputs = serve(llm, asks(teacher.lessons))
    assert [forwards.kinds(name).count("P") for name in "012"] == [1, 3, 5]
    check(teacher, outputs)


def test_preempted_and_prefilled_again(llm, teacher):
    with squeezed(llm, 40) as preempted:
        outputs = serve(llm, asks(teacher.lessons), rest=False)
    assert preempted
    check(teacher, outputs)


FAR = 262_144 - 70 - 3 * 32  # the third canvas ends where the real model's context ends


def test_positions_near_the_end_of_the_context(llm, monkeypatch, reference, prompts):
    """Rope at 262,000: the reference starts there, the engine's positions are moved there."""
    from diffusiongemma_vllm.model.backbone import Backbone

    forward = Backbone.forward

    def moved(self, x, positions, soft, denoising):
        return forward(self, x, positions + FAR, soft, denoising)

    teacher = Teacher(monkeypatch, {70: lesson(reference, prompts(70), seed=70, start=FAR)})
    near = lesson(reference, teacher.lessons[70].prompt, seed=70)
    monkeypatch.setattr(Backbone, "forward", moved)
    check(teacher, serve(llm, asks(teacher.lessons)))
    assert not torch.equal(near.logits[0][0], teacher.lessons[70].logits[0][0])


def test_window_near_the_end_of_the_context():
    """The last 64 keys before a canvas at 262,100 count, and no key before them."""
    from diffusiongemma_kernels.attention.op import paged_attention_torch
    from diffusiongemma_kernels.attention.reference import paged_attention
    from diffusiongemma_kernels.paged import Batch, PagedKV

    torch.manual_seed(0)
    page, seq_len, rows, window = 16, 262_100, 32, 64
    first = seq_len - rows
    table = torch.zeros(1, -(-seq_len // page), dtype=torch.int32)  # old pages: one, shared
    near = range((first - window) // page, table.shape[1])
    table[0, near.start :] = torch.arange(1, len(near) + 1)
    keys, values = torch.randn(2, len(near) + 1, page, 1, 32)
    query = torch.randn(rows, 2, 32) / 10  # every key counts
    for canvas in (0, 1):
        batch = Batch(
            torch.tensor([0, rows], dtype=torch.int32), torch.tensor([seq_len], dtype=torch.int32),
            table, torch.tensor([canvas], dtype=torch.int32), rows, seq_len,
        )

        def attend(run, keys, values, batch=batch):
            out = torch.full_like(query, float("nan"))
            return run(query, PagedKV(keys, values), batch, out, window=window, scale=1.0)

        ours = attend(paged_attention_torch, keys, values)
        torch.testing.assert_close(ours, attend(paged_attention, keys, values))
        # The oldest key a canvas sees is first - 63: garbage before it changes nothing.
        oldest = first - window + 1
        garbage_k, garbage_v = keys.clone(), values.clone()
        garbage_k[0], garbage_v[0] = 1e4, 1e4
        garbage_k[1, : oldest % page], garbage_v[1, : oldest % page] = 1e4, 1e4
        assert torch.equal(attend(paged_attention_torch, garbage_k, garbage_v), ours)
        garbage_v[table[0, oldest // page], oldest % page] += 1
        changed = (attend(paged_attention_torch, garbage_k, garbage_v) != ours).flatten(1).any(1)
        assert changed.tolist() == [True] + [bool(canvas)] * (rows - 1)
