"""Temperature falls from t_max at the first step towards t_min after the last."""

import torch
from torch.testing import assert_close
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    LinearTemperatureScheduleLogitsProcessor,
)

from diffusiongemma_vllm.denoise.schedule import LinearSchedule


def test_four_steps_by_hand():
    schedule = LinearSchedule(t_min=0.4, t_max=0.8, max_steps=4)
    assert_close(schedule(torch.arange(4)), torch.tensor([0.8, 0.7, 0.6, 0.5]))


def test_t_min_is_only_reached_after_the_last_step():
    assert_close(LinearSchedule(0.4, 0.8, 4)(torch.tensor([4])), torch.tensor([0.4]))


def test_one_step_runs_at_t_max():
    assert_close(LinearSchedule(0.4, 0.8, 1)(torch.tensor([0])), torch.tensor([0.8]))


def test_requests_at_different_steps():
    assert_close(LinearSchedule(0.0, 1.0, 10)(torch.tensor([5, 0, 9])), torch.tensor([0.5, 1, 0.1]))


def test_every_step_divides_as_the_reference_does():
    """To the last bit, on logits: transformers counts the steps that remain."""
    processor = LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, 48)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 10
    temperatures = LinearSchedule(0.4, 0.8, 48)(torch.arange(48))
    for step in range(48):
        remaining = torch.tensor(48 - step, dtype=torch.int32)
        assert torch.equal(logits / temperatures[step], processor(None, logits, remaining)), step
