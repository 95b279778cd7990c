"""The training twin computes what transformers' model computes, from the same file."""

import pytest
import torch
from export import save_checkpoint
from model import Miniature
from safetensors.torch import load_file
from transformers import DiffusionGemmaForBlockDiffusion

# two orders of summation: transformers' own eager and sdpa attention differ as much
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("checkpoint")
    twin = Miniature()
    save_checkpoint(twin, folder)
    saved = load_file(folder / "model.safetensors")
    twin.load_state_dict({k: v.float() for k, v in saved.items() if "model.decoder." in k})
    model, info = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    return twin, model.eval(), info


def test_the_checkpoint_loads_without_a_name_too_many_or_too_few(pair):
    info = pair[2]
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("conditioned", [False, True], ids=["first step", "self-conditioned"])
def test_logits_equal_transformers(pair, conditioned):
    twin, model, _ = pair
    rng = torch.Generator().manual_seed(1)
    lengths = torch.tensor([300, 33])  # longer and shorter than the window of 256
    context = torch.randint(384, (2, 320), generator=rng)
    canvas = torch.randint(384, (2, 256), generator=rng)
    belief = torch.randn(2, 256, 384, generator=rng) * 3 if conditioned else None
    with torch.no_grad():
        cache, _ = twin.encode(context)
        ours, _ = twin(canvas, lengths, cache, belief)
        for row, length in enumerate(lengths.tolist()):
            theirs = model(
                input_ids=context[row : row + 1, :length],
                decoder_input_ids=canvas[row : row + 1],
                self_conditioning_logits=belief[row : row + 1] if conditioned else None,
            ).logits
            assert (ours[row] - theirs[0]).abs().max() < TOLERANCE
