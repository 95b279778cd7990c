"""The bench can be loaded anywhere, and times no op that has no tests."""

import importlib
import sys
from pathlib import Path

import pytest

from diffusiongemma_kernels.attention import _config
from diffusiongemma_kernels.soft_mix._config import DROPPED, LEAST, LEVELS, LIMIT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cases():
    sys.path.insert(0, str(ROOT / "kernels/bench"))
    try:
        yield importlib.import_module("cases")
    finally:
        sys.path.remove(str(ROOT / "kernels/bench"))


def test_every_op_that_is_timed_is_tested_first(cases) -> None:
    for op in cases.OPS:
        assert (ROOT / f"tests/kernels/test_{op}.py").exists(), op


def test_sweeps_are_of_the_tables_kinds(cases) -> None:
    for configs in (cases.vocabulary_cases.configs, cases.vocabulary_cases.mix_configs):
        swept = list(configs())
        assert len(set(swept)) == len(swept) > 4
        assert all(size & (size - 1) == 0 for config in swept for size in config[:3])


def test_levels_of_soft_mix_reach_from_the_least_to_a_whole_row() -> None:
    assert LEAST * 4 ** (LEVELS - 1) <= 0.5 and LEAST * 16**5 >= 1 / LIMIT
    assert DROPPED < 0.5


@pytest.mark.parametrize("keys", [768, 8448, 33024, 131328, 262144])
@pytest.mark.parametrize(("kv_heads", "dim"), [(8, 256), (2, 512)], ids=["local", "global"])
def test_one_canvas_keeps_an_h200_busy(keys: int, kv_heads: int, dim: int) -> None:
    """Programs with work, of 132 processors that hold one each: no tail of few, no idle half."""
    seen = min(keys, 1023 + 256) if kv_heads == 8 else keys
    shape = _config.Shape(256, 1, kv_heads, 16 // kv_heads, dim, 2, seen)
    chosen = _config.choose(shape, (9, 0), 132)
    tiles = 256 * shape.group // chosen.block_m
    programs = tiles * kv_heads * (dim // chosen.block_dv) * chosen.splits
    waves = -(-programs // 132)
    assert programs / (132 * waves) > 0.9
