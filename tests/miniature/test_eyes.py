"""The twin with eyes against transformers' model, its pictures, and that it learns from them."""

from itertools import islice
from random import Random

import pytest
import torch
import train
import train_eyes
from drawings import COLOURS, GRID, TASKS, expanded, heldout, stream
from export import save_checkpoint
from eyes import SOFT, Scene, Seeing
from sampler import Rules
from tokens import VOCAB, encode

from diffusiongemma_vllm.media.pixels import positions


@pytest.fixture(scope="module")
def seeing():
    torch.manual_seed(0)
    return Seeing().eval()


def test_the_split():
    tested, trained = heldout(40), list(islice(stream(1), 100))
    assert [sum(one.task == name for one in tested) for name in TASKS] == [10] * 4
    assert all(one.held_out for one in tested) and not any(one.held_out for one in trained)
    assert heldout(40)[7].facts == tested[7].facts


@pytest.mark.parametrize("task", TASKS)
def test_pictures_show_what_is_asked(task):
    for seed in range(20):
        seen = TASKS[task](Random(seed))
        cut = seen.cut()
        assert len(cut) == (2 if task == "change" else 1)
        assert all((one.rows, one.columns) == GRID for one in cut)
        if task == "figure":
            _, colour, shape = seen.answer.split()
            assert COLOURS[colour] in {c for _, c in seen.pictures[0].getcolors(9)}
            assert shape in seen.facts


def test_a_prompt_is_expanded_as_the_processor_does():
    for name, count in (("dots", 1), ("change", 2)):
        ids, starts = expanded(TASKS[name](Random(0)).prompt)
        token = VOCAB["<|image|>" if count == 1 else "<|video|>"]
        assert len(starts) == count and ids.count(token) == count * SOFT
        for start in starts:
            assert ids[start : start + SOFT] == [token] * SOFT
            assert (ids[start - 1], ids[start + SOFT]) == (VOCAB["<|image>"], VOCAB["<image|>"])
        assert len(ids) <= train_eyes.LENGTH
    assert encode("00:00 ") == ids[ids.index(VOCAB["<|image>"]) - 6 :][:6]


@torch.no_grad()
def test_equal_to_transformers(seeing, tmp_path):
    """Soft tokens and the logits of a canvas behind a picture."""
    from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

    save_checkpoint(seeing, tmp_path)
    reference = DiffusionGemmaForBlockDiffusion.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    twin = Seeing().eval()
    twin.load_state_dict(
        {name: tensor.bfloat16().float() for name, tensor in seeing.state_dict().items()}
    )
    one = TASKS["figure"](Random(3))
    batch = train_eyes.unpacked(train_eyes.packed([one]))
    count = int(batch.lengths[0])
    whole = batch.context
    scene = Scene(whole.ids[:, :count], whole.patches, whole.seen[:, :count])
    pixels = scene.patches[:, 0].float() / 255
    where = torch.from_numpy(positions(*GRID, 3))[None]
    soft = reference.model.encoder.get_image_features(pixels, where).pooler_output
    torch.testing.assert_close(twin.look(scene.patches)[0, :SOFT], soft, rtol=1e-4, atol=1e-4)

    cache = DynamicCache(config=reference.config.text_config)
    at = torch.arange(count)[None]
    masks = reference.model.encoder.create_masks_for_generate(
        config=reference.config, inputs_embeds=torch.empty(1, count, 0), attention_mask=None,
        past_key_values=cache, position_ids=at, mm_token_type_ids=(scene.seen > 0).long(),
    )
    reference.model.encoder(
        input_ids=scene.ids, attention_mask=masks, position_ids=at, past_key_values=cache,
        pixel_values=pixels, image_position_ids=where,
    )
    want = reference(
        decoder_input_ids=batch.canvas, past_key_values=cache,
        decoder_position_ids=torch.arange(count, count + 256)[None],
    ).logits
    states, _ = twin.encode(scene)
    got, _ = twin(batch.canvas, batch.lengths, states, None)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-4


def test_it_learns():
    """A few steps on two pictures, text and eyes together, lower their loss; text moves no eye."""
    torch.manual_seed(0)
    state = train.start(torch.device("cpu"), Seeing)
    state.model.dtype = torch.float32
    state.lr.fill_(3e-3)
    parts = train_eyes.packed(list(islice(stream(2), 2)))
    run, losses = train_eyes.eager(state), []
    eyes = state.model.model["encoder"]["vision_tower"].patch_embedder.input_proj.weight
    before = eyes.detach().clone()
    for _ in range(6):
        run(parts, False)
        losses.append(float(state.loss))
    assert losses[-1] < losses[0] * 0.7 and not torch.equal(eyes, before)
    before = eyes.detach().clone()
    from loader import first

    train_eyes.text.eager(state)(first(1)[0], False)
    assert torch.equal(eyes, before)


def test_scoring(seeing, monkeypatch):
    monkeypatch.setattr(train_eyes, "Rules", lambda: Rules(steps=2))
    assert set(train_eyes.score(seeing, 4, rows=4)) == set(TASKS)
