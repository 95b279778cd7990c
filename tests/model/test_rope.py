"""Rotary positions, and the pairs of channels of full layers that stand still."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusiongemma_kernels.qkv.reference import turned
from diffusiongemma_vllm.model.rope import Rope, inverse_frequencies

KINDS = ["sliding_attention", "full_attention"]
PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_are_the_references(ours, theirs, kind):
    want = getattr(theirs.model.decoder.rotary_emb, f"{kind}_inv_freq")
    rope = ours.model.rope
    mine = dict(zip(rope.widths, rope.frequencies.split([*rope.widths.values()]), strict=True))
    assert torch.equal(mine[kind], want)


def test_proportional_turns_the_first_quarter():
    frequencies = inverse_frequencies(PROPORTIONAL, 512)
    assert frequencies.shape == (256,)
    assert (frequencies[:64] > 0).all() and (frequencies[64:] == 0).all()
    assert frequencies[0] == 1.0
    # The exponents run over the whole head, not over the quarter that turns.
    assert_close(frequencies[63], torch.tensor(1e6 ** -(126 / 512)))


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="config.json has 'yarn'"):
        inverse_frequencies({"rope_type": "yarn", "rope_theta": 1e4}, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_angles_are_the_references_to_the_last_position(ours, theirs, kind, dtype):
    positions = torch.tensor([0, 1, 255, 262142, 262143])
    angles = ours.model.rope(positions, dtype)[kind]
    like = torch.empty(0, dtype=dtype)
    cos, sin = theirs.model.decoder.rotary_emb(like, positions[None], kind)
    half = cos.shape[-1] // 2
    assert angles.dtype == dtype
    assert torch.equal(angles, torch.stack([cos[0, :, :half], sin[0, :, :half]], dim=1))


def test_a_quarter_turn_by_hand():
    """Channels 0 and 2 pair up, and 1 and 3: (a, b) -> (a cos - b sin, b cos + a sin)."""
    quarter = math.pi / 2
    angles = torch.tensor([[[math.cos(quarter), 1.0], [math.sin(quarter), 0.0]]])
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]]])
    first, second = turned(x, angles)[0]
    assert_close(first, torch.tensor([-3.0, 2.0, 1.0, 4.0]))
    assert_close(second, 2 * first)


def test_rotation_depends_on_the_distance_alone():
    rope = Rope({"one": ({"rope_type": "default", "rope_theta": 1e4}, 16)})
    q, k = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0)).double()

    def score(i, j):
        near = turned(q[None], rope(torch.tensor([i]), torch.float64)["one"])
        far = turned(k[None], rope(torch.tensor([j]), torch.float64)["one"])
        return (near * far).sum()

    assert_close(score(7, 3), score(104, 100), rtol=1e-5, atol=1e-5)
