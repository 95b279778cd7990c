"""The 200 held-out prompts through our engine, FP32 on CPU: right, and the same in any company."""

from collections import Counter
from random import Random

import pytest
from data import CHECKPOINT, SCORED, heldout
from engine import engine, scheduler, squeezed
from loader import CANVAS
from tokens import STOP, encode

pytestmark = pytest.mark.engine

EXAMPLES = heldout(200)
OPTIONS = dict(max_model_len=2048)


def answers(llm, order):
    """Token ids of each example's answer, asked in ``order`` in one call."""
    from vllm import SamplingParams

    asked = [{"prompt_token_ids": encode(EXAMPLES[i].prompt)} for i in order]
    params = [
        SamplingParams(max_tokens=1024, seed=i, stop_token_ids=sorted(STOP), detokenize=False)
        for i in order
    ]
    said = llm.generate(asked, params, use_tqdm=False)
    return {i: list(out.outputs[0].token_ids) for i, out in zip(order, said, strict=True)}


@pytest.fixture(scope="module")
def alone():
    with engine(CHECKPOINT, max_num_seqs=1, **OPTIONS) as llm:
        return answers(llm, range(len(EXAMPLES)))


@pytest.fixture(scope="module")
def shares(alone):
    """Task -> the share of its prompts that is answered exactly."""
    right = Counter(e.task for i, e in enumerate(EXAMPLES) if alone[i] == encode(e.answer))
    asked = Counter(e.task for e in EXAMPLES)
    return {task: right[task] / asked[task] for task in SCORED}


def test_answers_are_exact(alone):
    assert sum(alone[i] == encode(e.answer) for i, e in enumerate(EXAMPLES)) >= 190


@pytest.mark.parametrize("task", SCORED)
def test_every_task_is_answered(shares, task):
    assert shares[task] >= 0.9


def shuffled(every=1):
    order = list(range(0, len(EXAMPLES), every))
    Random(0).shuffle(order)
    return order


def same(together, alone):
    different = [i for i in together if together[i] != alone[i]]
    assert not different, [(i, EXAMPLES[i].task) for i in different]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.long)])
def test_answers_do_not_depend_on_company_order_or_preemption(alone, every):
    with engine(CHECKPOINT, max_num_seqs=4, **OPTIONS) as llm:
        same(answers(llm, shuffled(every)), alone)
        # room for the longest request and no more
        longest = max(len(encode(e.prompt + e.answer)) for e in EXAMPLES) + CANVAS
        found = scheduler(llm)
        blocks = len(found.kv_cache_config.kv_cache_groups) * -(-longest // found.block_size)
        long = [i for i in alone if EXAMPLES[i].task == "count_long"][::every]
        others = [i for i in shuffled() if EXAMPLES[i].task != "count_long"]
        with squeezed(llm, blocks) as preempted:
            order = [i for pair in zip(long, others, strict=False) for i in pair]
            same(answers(llm, order), alone)
        assert len(preempted) > len(long) // 2


@pytest.mark.long
def test_answers_do_not_depend_on_async_scheduling(alone):
    with engine(CHECKPOINT, max_num_seqs=4, async_scheduling=True, **OPTIONS) as llm:
        same(answers(llm, shuffled()), alone)
