"""Any number of ranks together hold a checkpoint once, and compute what one would."""

import shutil
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from modules import building, edit_tensors, engine_config, filled, load
from random_checkpoint import build
from ranks import pretending
from torch.testing import assert_close

KINDS = ["sliding_attention", "full_attention"]
CLOSE = dict(rtol=1e-5, atol=1e-5)


class Case(NamedTuple):
    shape: str
    ranks: int
    layout: str
    by_experts: bool
    why: str


SHAPES = {
    "eight": dict(
        num_attention_heads=8, num_key_value_heads=4, num_global_key_value_heads=2,
        moe_intermediate_size=144,
    ),
    "three": dict(
        num_attention_heads=6, num_key_value_heads=3, num_global_key_value_heads=1,
        moe_intermediate_size=80, vocab_size=570,  # padded to 576
    ),
}
CASES = [
    Case("eight", 2, "bf16", False, "two"),
    Case("eight", 4, "bf16", False, "fewer key heads on a full layer than ranks"),
    Case("eight", 8, "bf16", False, "fewer key heads than ranks; nine blocks over eight"),
    Case("eight", 4, "bf16", True, "two experts each"),
    Case("eight", 4, "nvfp4", False, "blocks of four bits"),
    Case("eight", 2, "nvfp4", True, "four experts each in four bits"),
    Case("three", 3, "bf16", False, "five blocks over three; a padded vocabulary"),
    Case("three", 3, "nvfp4", True, "eight experts over three"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from diffusiongemma_vllm.cli.main import main

    found = {}
    for name, shape in SHAPES.items():
        root = tmp_path_factory.mktemp(name)
        folder = build(root / "bf16", num_hidden_layers=2, layer_types=KINDS, **shape)
        four = root / "nvfp4"
        assert main(["quantize", str(folder), str(four), "--calibration", "none"]) == 0
        found |= {(name, "bf16"): folder, (name, "nvfp4"): four}
    return found


@pytest.fixture(scope="module")
def whole(folders):
    models = {}

    def of(shape, layout):
        if (shape, layout) not in models:
            models[shape, layout] = load(folders[shape, layout])
        return models[shape, layout]

    return of


@contextmanager
def ranks_of(folder, *, by_experts):
    """A function that makes the model of a rank, whose sums are its own part."""
    config = engine_config(folder)
    config.parallel_config.enable_expert_parallel = by_experts
    with building(config):
        yield lambda: filled(config, folder)


def on_every_rank(folder, case, function):
    """function(model) for the model of every rank."""
    found = []
    with ranks_of(folder, by_experts=case.by_experts) as model:
        for rank in range(case.ranks):
            with pretending(rank, case.ranks):
                found.append(function(model()))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_ranks_add_up(case, folders, whole, rows):
    """Embedding, attention's ends, MLP, experts, self-conditioning's MLP and head."""
    one = whole(case.shape, case.layout)
    vocab = one.text_config.vocab_size
    ids = torch.arange(0, vocab, 7)
    kinds = {layer.self_attn.kind for layer in one.model.layers}
    assert len(kinds) == 2
    make = torch.Generator().manual_seed(0)
    mixed = [
        torch.randn(9, layer.self_attn.o_proj.input_size, generator=make)
        for layer in one.model.layers
    ]

    def parts(model):
        sums, joined = [model.model.embed(ids)], [model.vocabulary.project(rows)]
        sums.append(model.model.self_conditioning.down_proj(
            model.model.self_conditioning.act(model.model.self_conditioning.gate_up_proj(rows))
        ))
        keys = []
        for layer, heads in zip(model.model.layers, mixed, strict=True):
            attention = layer.self_attn
            angles = model.model.rope(torch.arange(len(rows)), rows.dtype)[attention.kind]
            q, *kv = attention.project(rows, angles)
            joined.append(q)
            keys.append([x.unflatten(1, (-1, attention.head_dim)) for x in kv])
            size, rank = attention.o_proj.input_size_per_partition, attention.o_proj.tp_rank
            sums.append(attention.o_proj(heads[:, rank * size : (rank + 1) * size]))
            sums.append(layer.mlp(rows))
            sums.append(layer.experts(rows, layer.router(rows)))
        return sums, joined, keys, model.vocabulary.first

    found = on_every_rank(folders[case.shape, case.layout], case, parts)
    sums, joined, keys, _ = parts(one)
    for want, got in zip(sums, zip(*(part[0] for part in found), strict=True), strict=True):
        assert_close(sum(got), want, **CLOSE)
    for want, got in zip(joined, zip(*(part[1] for part in found), strict=True), strict=True):
        assert_close(torch.cat(got, 1), want, **CLOSE)
    for rank, (_, _, held, first) in enumerate(found):
        assert first == rank * (-(-vocab // 64) * 64 // case.ranks)
        for want, got in zip(keys, held, strict=True):
            heads, mine = want[0].shape[1], got[0].shape[1]
            begin = rank * heads // case.ranks
            assert mine == max(1, heads // case.ranks)
            for x, y in zip(want, got, strict=True):
                assert_close(y, x[:, begin : begin + mine], **CLOSE)


def numbers(model):
    return sum(x.numel() for x in model.model.layers.parameters())


def test_a_rank_holds_its_part_only(folders, whole):
    """Norms, routers and scalars apart; blocks of experts do not divide evenly."""
    case = CASES[1]
    held = on_every_rank(folders[case.shape, case.layout], case, numbers)
    assert max(held) < 0.36 * numbers(whole(case.shape, case.layout))


@pytest.mark.parametrize("layout, by_experts", [("bf16", False), ("nvfp4", True)])
def test_a_tensor_that_does_not_fit_is_found_by_every_rank(
    folders, tmp_path, layout, by_experts
):
    """Also by those that would hold nothing of it."""
    folder = shutil.copytree(folders["eight", layout], tmp_path / "copy")
    name = "model.decoder.layers.0.experts."
    name += "gate_up_proj" if layout == "bf16" else "7.down_proj.weight_scale"

    def cut(tensors):
        tensors[name] = tensors[name][:, :-1].contiguous()

    edits = {f"{name} .* does not fit": cut, f"is missing .* {name} ": lambda x: x.pop(name)}
    with ranks_of(folder, by_experts=by_experts) as model:
        for complaint, edit in edits.items():
            edit_tensors(folder, edit)
            for rank in range(2):
                with pretending(rank, 2), pytest.raises(ValueError, match=complaint):
                    model()


def test_a_bad_scale_is_told_by_its_own_number(folders, tmp_path):
    folder = shutil.copytree(folders["eight", "nvfp4"], tmp_path / "copy")
    name = "model.decoder.layers.1.experts.6.down_proj.weight_scale_2"
    edit_tensors(folder, lambda tensors: tensors[name].fill_(0.0))
    with ranks_of(folder, by_experts=True) as model:
        with pretending(0, 2):
            model()
        with pretending(1, 2), pytest.raises(ValueError, match=r"1\.experts\.6: down_weight"):
            model()
