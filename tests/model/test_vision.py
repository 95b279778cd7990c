"""Soft tokens of the tower and the projector against transformers' model."""

from functools import cache

import pytest
import torch
from pictures import noise, reference_inputs
from random_checkpoint import VISION, text_config

from diffusiongemma_vllm.media.options import BUDGETS
from diffusiongemma_vllm.media.pixels import Tiling, patches
from diffusiongemma_vllm.model import vision as module
from diffusiongemma_vllm.model.vision import Picture, Vision

SIZES = [
    (640, 480), (1920, 1080), (1024, 1024), (224, 224), (1000, 100), (100, 1000), (1, 1), (17, 31),
    (60, 900), (2000, 50),
]
TOLERANCE = 1e-4


@cache
def models():
    """transformers' encoder and our tower with its weights: two layers, every weight drawn."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    kinds = ["sliding_attention", "full_attention"]
    config = DiffusionGemmaConfig(
        text_config=text_config(num_hidden_layers=2, layer_types=kinds, hidden_size=32),
        vision_config=VISION | {"num_hidden_layers": 2, "position_embedding_size": 512},
        canvas_length=32, image_token_id=10, boi_token_id=11, eoi_token_id=12,
    )
    torch.manual_seed(0)
    reference = DiffusionGemmaForBlockDiffusion(config).float().eval().model.encoder
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if "vision" in name:
                wide = tensor.dim() > 1 and "position" not in name
                tensor.copy_(torch.randn_like(tensor) * (tensor.shape[-1] ** -0.5 if wide else 0.5))
                if "norm" in name or "std_scale" in name:
                    tensor.add_(1)
    ours = Vision(config.vision_config, config.text_config).float().eval()
    ours.tower.load_state_dict(reference.vision_tower.state_dict())
    ours.projector.load_state_dict(reference.embed_vision.state_dict(), strict=False)
    return reference, ours


def picture(image, tokens):
    cut = patches(image, tokens, Tiling(positions=512))
    return Picture(torch.from_numpy(cut.values), cut.rows, cut.columns)


@torch.no_grad()
def wanted(images, tokens):
    """transformers' soft tokens, of images padded to one length and run together."""
    inputs, counts = reference_inputs(images, tokens)
    return models()[0].get_image_features(**inputs).pooler_output.split(counts)


def check(got, want):
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        worst = float((ours - theirs).abs().max() / theirs.abs().max())
        assert worst <= TOLERANCE, f"{worst:.1e} of the largest"


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("tokens", [70, 140])
@torch.no_grad()
def test_one_image(size, tokens):
    image = noise(*size)
    check(models()[1]([picture(image, tokens)]), wanted([image], tokens))


@pytest.mark.parametrize("tokens", [budget for budget in BUDGETS if budget > 140])
@torch.no_grad()
def test_larger_budgets(tokens):
    image = noise(640, 480)
    check(models()[1]([picture(image, tokens)]), wanted([image], tokens))


@torch.no_grad()
def test_images_of_different_sizes(monkeypatch):
    images = [noise(*size, seed=k) for k, size in enumerate([(90, 60), (50, 300), (90, 60)])]
    shown = [picture(image, 70) for image in images]
    ours = models()[1]
    alone = [ours([one])[0] for one in shown]
    check(alone, wanted(images, 70))
    together = ours(shown)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    # as on a GPU, where pictures of one size run in one call
    calls = []
    encode = Vision.encode

    def counted(self, values, rows, columns):
        calls.append(len(values))
        return encode(self, values, rows, columns)

    monkeypatch.setattr(Vision, "encode", counted)
    monkeypatch.setattr(Vision, "_batches", lambda self, pictures: iter([[0, 2], [1]]))
    check(ours(shown), wanted(images, 70))
    assert calls == [2, 1]


def test_batches_of_a_gpu():
    class There:
        is_cuda, shape = True, (module.PATCHES // 2, 768)

    shown = [Picture(There(), rows, 9) for rows in (7, 7, 8, 7)]
    assert list(models()[1]._batches(shown)) == [[0, 1], [3], [2]]
