"""When a canvas is finished."""

import torch

from diffusiongemma_vllm.denoise.stopping import (
    All,
    Confident,
    Either,
    Settled,
    StepLimit,
    Trace,
)

TRACE = Trace(
    held=torch.tensor([0, 1, 2, 3]),
    step=torch.tensor([1, 2, 3, 48]),
    mean_entropy=torch.tensor([0.001, 0.005, 0.004, 2.0]),
)
SURE, UNSURE = (lambda trace: trace.held >= 0), (lambda trace: trace.held < 0)


def said(rule):
    return rule(TRACE).int().tolist()


def test_settled_counts_the_steps_that_kept_the_guess():
    assert said(Settled(2)) == [0, 0, 1, 1]
    assert said(Settled(1)) == [0, 1, 1, 1]


def test_settled_after_0_steps_is_settled_at_once():
    assert said(Settled(0)) == [1, 1, 1, 1]


def test_confident_below_the_threshold_not_at_it():
    assert said(Confident(0.005)) == [1, 0, 1, 0]


def test_the_step_limit_is_the_last_step():
    assert said(StepLimit(48)) == [0, 0, 0, 1]
    assert said(StepLimit(1)) == [1, 1, 1, 1]


def test_all():
    assert said(All((Settled(1), Confident(0.005)))) == [0, 0, 1, 0]
    assert said(All((SURE,))) == [1, 1, 1, 1]
    assert said(All((SURE, SURE, UNSURE))) == [0, 0, 0, 0]


def test_either():
    assert said(Either((Confident(0.005), StepLimit(48)))) == [1, 0, 1, 1]
    assert said(Either((UNSURE, UNSURE, SURE))) == [1, 1, 1, 1]
