"""Rows by expert against a plain loop."""

from typing import NamedTuple

import pytest
import torch

from diffusiongemma_kernels.moe_gemm.testing import route
from diffusiongemma_kernels.moe_sort import op, reference


class Case(NamedTuple):
    tokens: int
    experts: int
    top_k: int
    why: str
    block: int = 16
    zipf: float = 0.0


CASES = [
    Case(0, 8, 2, "empty step"),
    Case(1, 8, 2, "one row"),
    Case(17, 7, 3, "nothing divides"),
    Case(17, 128, 8, "the model's experts"),
    Case(256, 8, 2, "one canvas"),
    Case(300, 40, 8, "two blocks of ids, skewed", zipf=1.2, block=32),
    Case(300, 9, 8, "tiles as full as others in steps of 32", zipf=1.2, block=160),
]


def check(ids: torch.Tensor, case: Case, fullest_first: bool) -> None:
    arguments = {"experts": case.experts, "block": case.block, "fullest_first": fullest_first}
    got = op.moe_sort(ids, **arguments)
    want = reference.moe_sort(ids, **arguments)
    assert torch.equal(got.rows[: len(want.rows)], want.rows)
    assert torch.equal(got.tiles, want.tiles)
    if case.tokens:
        assert torch.equal(got.total, want.total) and torch.equal(got.progress, want.progress)


@pytest.mark.parametrize("fullest_first", [True, False], ids=["hopper", "others"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_sort(case: Case, fullest_first: bool, device: str) -> None:
    ids, _ = route(case.tokens, case.experts, case.top_k, zipf=case.zipf)
    check(ids.to(device), case, fullest_first)


def test_all_rows_on_one_expert(device: str) -> None:
    case = Case(40, 8, 2, "", block=16)
    ids = torch.full((40, 2), 5, dtype=torch.int32, device=device)
    check(ids, case, fullest_first=False)
    got = op.moe_sort(ids, experts=8, block=16)
    assert got.tiles[:, :5].tolist() == [[5] * 5, [0, 16, 32, 48, 64], [16] * 5]
    assert got.total.tolist() == [5] and not got.tiles[:, 5:].any()


def test_ids_of_other_ranks_are_left_out(device: str) -> None:
    ids = torch.tensor([[0, -1], [3, 1], [9, 0]], dtype=torch.int32, device=device)
    got = op.moe_sort(ids, experts=3, block=16)
    assert got.rows[:3].tolist() == [0, 5, 3]
    assert got.tiles.tolist() == [[0, 1, 0], [0, 2, 0], [2, 1, 0]] and got.total.tolist() == [2]
