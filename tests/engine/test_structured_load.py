"""Forty of the load's requests (examples/structured): on the miniature, and on random weights.

With fewer steps and tokens than the load has, whose result is in README.md.
"""

import sys
from pathlib import Path

import pytest
from engine import Engines, at_rest, forget

pytestmark = pytest.mark.engine

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "structured"))
LIMIT, STEPS = 96, 4


@pytest.fixture(scope="module")
def load():
    import structured_load

    return structured_load


def answered(load, llm, asked, **options):
    """The answers to ``asked``; no request may be left over, and those that end are valid."""
    answers = load.ask(llm, asked, limit=LIMIT, **options)
    at_rest(llm)
    if not options.get("free"):
        wrong = [(one.case.name, told.text) for one, told in zip(asked, answers, strict=True)
                 if told.ended and load.problem(one.case, told.text)]
        assert not wrong
    return answers


def test_the_miniature(load, miniature):
    """What fits costs no forward more than it would cost freely."""
    llm = miniature(async_scheduling=False)
    forget(llm)
    asked = load.requests(every=10)
    fits = [one for one in load.requests() if one.case.name.startswith("fits")][:8:2]
    answers = answered(load, llm, asked, steps=STEPS)
    assert sum(told.ended for told in answers) >= 0.8 * len(answers)
    told = load.summary(fits, answered(load, llm, fits), answered(load, llm, fits, free=True))
    assert told["tokens_a_forward"] > 8 and told["forwards"] < told["forwards_without"] + 2


def test_random_weights(load, tmp_path):
    """A model that writes noise: bounded constraints end all the same."""
    from random_weights import randomised

    from diffusiongemma_vllm.cli.main import MINIATURE

    pool = Engines(randomised(Path(MINIATURE), tmp_path / "random"))
    try:
        llm = pool(skip_tokenizer_init=False, max_model_len=1280, block_size=16, max_num_seqs=8)
        answers = answered(load, llm, load.requests(bounded=True, every=25)[:6], steps=STEPS)
    finally:
        pool.close()
    assert all(told.ended for told in answers)
