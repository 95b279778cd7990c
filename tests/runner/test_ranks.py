"""Ranks that hold parts of a vocabulary take one decision, the one that a single rank takes."""

from types import SimpleNamespace

import pytest
import torch
from around import LIMIT, REQUESTS, Host, Side, steps
from ranks import together
from vocabulary import Held

from diffusiongemma_vllm.model.ranks import Ranks
from diffusiongemma_vllm.runner import belief, several

ROWS, VOCAB, HIDDEN = 6, 300, 16


class Model:
    model = SimpleNamespace(embed_scale=4.0)

    def __init__(self, ranks):
        weight = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0))
        self.vocabulary = Held.of(weight, ranks)


@pytest.fixture
def rows():
    make = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=make)
    return hidden, torch.linspace(0.0, 0.8, ROWS), torch.arange(ROWS), torch.arange(ROWS) * 7


def close(found, want):
    """Of every rank; the ranks among themselves bit for bit."""
    for stats, mixed in found:
        assert torch.equal(stats.argmax, want[0].argmax)
        assert torch.equal(stats.sample, want[0].sample)
        for got, right in zip((*stats, mixed), (*want[0], want[1]), strict=True):
            torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
        for got, same in zip((*stats, mixed), (*found[0][0], found[0][1]), strict=True):
            assert torch.equal(got, same)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("bent", [False, True])
def test_beliefs(rows, count, bent):
    hidden, heat, *ints = rows
    logits, softcap = None, 30.0
    if bent:
        make = torch.Generator().manual_seed(2)
        logits, softcap = torch.randn(ROWS, VOCAB, generator=make) * 3, None
        logits[:, 100:] = -torch.inf  # most ranks hold nothing that may be drawn

    def on(ranks):
        return belief.believe(Model(ranks), hidden, logits, heat, *ints, softcap)

    close(together(count, on), on(Ranks()))


@pytest.mark.parametrize("count", [2, 4])
def test_beliefs_of_the_fused_kernels(rows, count, monkeypatch):
    """As they are wired on a GPU, by the kernels' own implementation in plain torch."""
    hidden, heat, *ints = rows

    def on(ranks):
        return belief.believe(Model(ranks), hidden, None, heat, *ints, 30.0)

    want = on(Ranks())
    monkeypatch.setattr(belief, "fuses", lambda weight: True)
    close(together(count, on), want)


@pytest.mark.parametrize("count", [3, 8])
def test_whole_requests(count):
    """Text, slots and scores of every rank, step by step, beside a request that filters."""

    def on(ranks):
        side, host, told = Side("cpu", False, ranks), Host(), []
        side.filter(1)
        for requests, batch, rows, hidden in steps(host, "cpu"):
            ids = torch.zeros(sum(one[2] for one in requests), dtype=torch.int32)
            side.inputs_of(rows, ids, len(ids))
            out = side.sampler(hidden, batch)
            host.update(requests, out.num_sampled.tolist(), out.num_rejected.tolist())
            scores = out.logprobs_tensors
            told.append((
                [] if scores is None else [scores.logprob_token_ids, scores.logprobs],
                out.sampled_token_ids, out.num_sampled,
                *(vars(side.state)[name].clone() for name in ("phase", "tokens", "best", "base")),
                side.state.soft.clone(),
            ))
        assert host.text == [LIMIT] * REQUESTS
        return told

    want, found = on(Ranks()), together(count, on)
    for step, (scores, *exact, soft) in enumerate(want):
        for rank in found:
            also, *got, near = rank[step]
            assert all(torch.equal(x, y) for x, y in zip(exact, got, strict=True)), step
            torch.testing.assert_close(near, soft, rtol=1e-5, atol=1e-5)
            assert torch.equal(near, found[0][step][-1])
            torch.testing.assert_close(also, scores)


def test_one_rank_with_nan_is_every_ranks():
    """Statistics say so on all ranks, and tokens stay tokens."""
    hidden = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1))
    heat, ints = torch.ones(2), torch.arange(2)

    def on(ranks):
        model = Model(ranks)
        if ranks.rank == 1:
            model.vocabulary.part[3] = torch.nan
        return belief.believe(model, hidden, None, heat, ints, ints, 30.0)

    for stats, mixed in together(3, on):
        assert stats.entropy.isnan().all() and mixed.isnan().all()
        assert ((stats.argmax >= 0) & (stats.argmax < VOCAB)).all()


# What divides.

REAL = SimpleNamespace(
    num_attention_heads=16, intermediate_size=2112, num_experts=128, moe_intermediate_size=704,
    vocab_size=262144,
    per_layer_config=[SimpleNamespace(num_key_value_heads=n) for n in (8, 2)],
)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("by_experts", [False, True])
def test_the_real_model_divides(ranks, by_experts):
    assert several.uneven(REAL, ranks, by_experts=by_experts, tokens=4096) == []


def test_what_does_not_divide_is_named():
    found = several.uneven(REAL, 3, by_experts=False, tokens=4096)
    assert [reason.split(" ")[0] for reason in found] == [
        "16", "2", "8", "vocab_size",
    ]
    narrow = SimpleNamespace(**vars(REAL) | {"moe_intermediate_size": 40, "num_experts": 1})
    assert "use fewer GPUs or --enable-expert-parallel" in several.uneven(
        narrow, 2, by_experts=False, tokens=1
    )[0]
    assert several.uneven(narrow, 2, by_experts=True, tokens=1) == ["1 experts need at most 1"]
    tiny = SimpleNamespace(**vars(REAL) | {"vocab_size": 60})
    assert "none may be empty" in several.uneven(tiny, 16, by_experts=True, tokens=1)[0]
