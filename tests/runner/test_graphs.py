"""Which CUDA graph a batch replays, by vLLM's own dispatcher: canvases of 32 rows."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from modules import engine_config
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from diffusiongemma_vllm.runner import graphs
from diffusiongemma_vllm.runner.engine_config import graph_sizes

CANVAS, REQUESTS, BUDGET = 32, 4, 8 * 32 + 7


@pytest.fixture(scope="module")
def config(checkpoint):
    config = engine_config(checkpoint, max_num_seqs=REQUESTS, max_num_batched_tokens=BUDGET)
    sizes = graph_sizes(CANVAS, min(2 * REQUESTS, BUDGET // CANVAS))
    config.compilation_config.cudagraph_capture_sizes = sizes
    config.compilation_config.max_cudagraph_capture_size = sizes[-1]
    graphs.install()
    return config


def manager(config, monkeypatch):
    """vLLM's, as if its graphs had been captured."""
    group = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    monkeypatch.setattr(cudagraph_utils, "get_pp_group", lambda: group)
    pool = SimpleNamespace(get_global_graph_pool=lambda: None)
    monkeypatch.setattr(cudagraph_utils, "current_platform", pool)
    made = cudagraph_utils.CudaGraphManager(
        config, None, CUDAGraphMode.FULL_DECODE_ONLY, CANVAS
    )
    made._graphs_captured = True
    return made


def dispatched(config, monkeypatch, rows, canvases, prompts=(), pictures=(), counted=False):
    """The graph that vLLM's runner takes for a batch.

    canvases: rows of each request that are drafts.  prompts: the requests still read.  pictures:
    those with a picture in their prompt.  counted: it is this forward's turn to be.
    """
    names = [str(i) for i in range(len(rows))]
    features = {names[i]: ["a picture"] for i in pictures}
    state = SimpleNamespace(
        supports_mm_inputs=True, encoder_cache=SimpleNamespace(mm_features=features),
        expert_load=SimpleNamespace(due=lambda tokens: counted),
    )
    computed = np.full(len(rows), 20)
    computed[list(prompts)] = 0
    runner = SimpleNamespace(
        model_config=config.model_config, decode_query_len=CANVAS, use_pp=False,
        adaptive_verification=None, pcp_manager=None,
        model_state=state,
        req_states=SimpleNamespace(
            req_id_to_index={name: i for i, name in enumerate(names)},
            prefill_len=SimpleNamespace(np=np.full(len(rows), 20)),
            num_computed_prefill_tokens=computed,
        ),
    )
    output = SchedulerOutput.make_empty()
    output.num_scheduled_tokens = dict(zip(names, rows, strict=True))
    output.total_num_scheduled_tokens = sum(rows)
    output.scheduled_spec_decode_tokens = {
        name: [-1] * width for name, width in zip(names, canvases, strict=True) if width
    }
    batch, count = GPUModelRunner.gather_batch_req_state(runner, output, False)
    assert batch.has_prefill == bool(prompts)
    longest = None if batch.has_prefill else max(rows)  # as the runner says it
    found = manager(config, monkeypatch).dispatch(
        len(rows), sum(rows), count, 0, max_query_len=longest
    )
    assert found.cg_mode in (CUDAGraphMode.FULL, CUDAGraphMode.NONE)
    return (found.num_tokens, found.num_reqs) if found.cg_mode == CUDAGraphMode.FULL else None


class Case(NamedTuple):
    rows: list[int]
    canvases: list[int]
    graph: tuple[int, int] | None  # its rows and requests; None runs eagerly
    why: str
    prompts: tuple[int, ...] = ()


CASES = [
    Case([32], [32], (32, 1), "one canvas"),
    Case([32] * 4, [32] * 4, (128, 4), "four canvases"),
    Case([64], [32], (64, 2), "one commit with the next canvas"),
    Case([64, 32], [32, 32], (96, 3), "the same beside a canvas"),
    Case([32], [0], (32, 1), "a commit alone"),
    Case([32, 64, 32], [32, 32, 0], (128, 4), "every kind"),
    Case([64] * 4, [32] * 4, (256, 4), "more canvases of rows than requests"),
    Case([50], [32], (64, 2), "text that a constraint left"),
    Case([32, 32, 10], [32, 32, 10], (96, 3), "a canvas at the end of the context"),
    Case([64] * 3 + [40], [32] * 3 + [8], (256, 4), "fused at the end of the context"),
    Case([10, 10], [10, 10], (64, 2), "short canvases: one canvas of rows, two requests"),
    Case([20], [0], (32, 1), "a prompt", (0,)),
    Case([200], [0], (224, 4), "a prompt of many canvases of rows", (0,)),
    Case([257], [0], None, "a prompt of more rows than any graph", (0,)),
    Case([32, 20], [32, 0], (64, 2), "a prompt beside a canvas", (1,)),
    Case([64, 32, 90], [32, 32, 0], (192, 4), "a part of a prompt beside a commit", (2,)),
    Case([3] * 4, [0] * 4, (128, 4), "short prompts: one canvas of rows, four requests",
         (0, 1, 2, 3)),
    Case([1], [0], (32, 1), "the last token of a prompt", (0,)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_the_graph_of_a_batch(config, monkeypatch, case):
    found = dispatched(config, monkeypatch, case.rows, case.canvases, case.prompts)
    assert found == case.graph


def test_a_prompt_with_pictures_runs_eagerly(config, monkeypatch):
    def graph(prompts):
        return dispatched(config, monkeypatch, [32, 20], [32, 0], prompts, pictures=(1,))

    assert graph((1,)) is None
    assert graph((0,)) == (64, 2), "another's prompt: the picture has been read"
    assert graph(()) == (64, 2)


def test_a_forward_that_is_counted_runs_eagerly(config, monkeypatch):
    assert dispatched(config, monkeypatch, [20], [0], (0,), counted=True) is None
    assert dispatched(config, monkeypatch, [32], [32], counted=True) == (32, 1), "no prompt in it"


def test_many_empty_rows_cost_more_than_launches(config, monkeypatch):
    """Requests enough for the largest graph, rows for the smallest."""
    monkeypatch.setattr(graphs, "SPARE", 2)
    assert dispatched(config, monkeypatch, [3] * 3, [0] * 3, (0, 1, 2)) is None
    assert dispatched(config, monkeypatch, [3] * 2, [0] * 2, (0, 1)) == (64, 2)


def test_no_graph_has_more_requests_than_slots(config, monkeypatch):
    made = manager(config, monkeypatch)
    captured = made._capture_descs[CUDAGraphMode.FULL]
    assert [one.num_tokens for one in captured] == [CANVAS * n for n in range(8, 0, -1)]
    assert all(one.num_reqs == min(one.num_tokens // CANVAS, REQUESTS) for one in captured)
    for table in made._candidates.values():
        assert set(table) <= set(captured)


@pytest.mark.parametrize(
    ("requests", "length", "most"),
    [(1, 1024, 8), (2, 1024, 8), (4, 1024, 8), (1, 100, 3), (2, 100, 6), (1, 32, 1), (4, 31, 0)],
)
def test_vllm_can_make_the_batches_it_captures(config, monkeypatch, requests, length, most):
    """No request of theirs is longer than the context: there are no pages behind it."""
    monkeypatch.setattr(config.scheduler_config, "max_num_seqs", requests)
    monkeypatch.setattr(config.model_config, "max_model_len", length)
    captured = manager(config, monkeypatch)._capture_descs.get(CUDAGraphMode.FULL, [])
    assert [one.num_tokens for one in captured] == [CANVAS * n for n in range(most, 0, -1)]
    for one in captured:
        rows = one.num_tokens
        places = [torch.zeros(n, dtype=torch.int32) for n in (rows, rows, rows + 1, rows)]
        buffers = SimpleNamespace(
            device="cpu", input_ids=places[0], positions=places[1], query_start_loc=places[2],
            seq_lens=places[3], is_padding=torch.zeros(rows, dtype=torch.bool),
        )
        batch = InputBatch.make_dummy(
            one.num_reqs, rows, buffers, one.max_query_len or one.uniform_token_count
        )
        assert batch.num_tokens == rows
        assert batch.num_scheduled_tokens.max() <= length


def test_other_models_are_left_alone(config, monkeypatch):
    from diffusiongemma_vllm import compat

    monkeypatch.setattr(graphs, "ours", lambda model_config: False)
    assert dispatched(config, monkeypatch, [64, 32], [32, 32]) is None
    assert dispatched(config, monkeypatch, [32, 32], [32, 32]) == (64, 2)
    assert dispatched(config, monkeypatch, [20], [0], (0,)) is None
    captured = manager(config, monkeypatch)._capture_descs[CUDAGraphMode.FULL]
    assert max(one.num_tokens for one in captured) == REQUESTS * CANVAS
    for owner, name in ((GPUModelRunner, "gather_batch_req_state"),
                        (cudagraph_utils.CudaGraphManager, "_init_candidates")):
        assert len(getattr(getattr(owner, name), compat.MARK)) == 1, "patched once"
