"""The batch functions for CPU do to tensors what vLLM's kernels do in Triton's interpreter."""

import inspect

import pytest
import torch
from vllm.v1.worker.cpu.buffer_utils import UvaBuffer
from vllm.v1.worker.gpu import buffer_utils, input_batch
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.buffer_utils import FusedStagedWriter, StagedWriteTensor

from diffusiongemma_vllm.runner import cpu_batch

MAX, TOKENS, CANVAS, CONTEXT, PAGE = 6, 96, 8, 64, 16
SLOTS = torch.tensor([4, 0, 3], dtype=torch.int32)
# slot 4 denoises a canvas, slot 0 is in its prompt, slot 3 ends its prompt
COMPUTED = torch.tensor([5, 0, 0, 20, 30, 0], dtype=torch.int32)
PREFILL = torch.tensor([40, 0, 0, 33, 30, 0], dtype=torch.int32)
STARTS = torch.tensor([0, 8, 20, 33, 33], dtype=torch.int32)  # one request of padding
LOGITS = torch.tensor([0, 8, 8, 8], dtype=torch.int32)


@pytest.fixture(autouse=True)
def buffers(monkeypatch):
    """As vLLM's CPU worker sets them."""
    monkeypatch.setattr(buffer_utils, "UvaBuffer", UvaBuffer)


def original(owner, name):
    """vLLM's own, even where an engine of this process has put ours in its place."""
    return inspect.unwrap(getattr(owner, name))


def tokens(*shape, seed=0):
    return torch.randint(3, 500, shape, generator=torch.Generator().manual_seed(seed)).int()


def same(ours, theirs, tensors, *args, **kwargs):
    """Call both with copies of ``tensors``; all they wrote and returned must be equal."""
    results = []
    for function in (ours, theirs):
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        returned = function(*args, **copies, **kwargs)
        results.append((copies, returned))
    (mine, got), (wanted, want) = results
    for name in tensors:
        assert torch.equal(mine[name], wanted[name]), name
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, want)), strict=True):
        assert one is other is None or (one.dtype == other.dtype and torch.equal(one, other))
    return mine


def test_prepare_prefill_inputs():
    same(
        cpu_batch.prepare_prefill_inputs, original(input_batch, "prepare_prefill_inputs"),
        dict(
            input_ids=tokens(TOKENS, seed=1), next_prefill_tokens=tokens(3, MAX, seed=2),
            idx_mapping=SLOTS, query_start_loc=STARTS, all_token_ids=tokens(MAX, CONTEXT),
            prefill_len=PREFILL, num_computed_tokens=COMPUTED,
        ),
    )


def test_prepare_pos_seq_lens():
    written = same(
        cpu_batch.prepare_pos_seq_lens, original(input_batch, "prepare_pos_seq_lens"),
        dict(
            idx_mapping=SLOTS, query_start_loc=STARTS, num_computed_tokens=COMPUTED,
            pos=torch.full((TOKENS,), 7), seq_lens=torch.full((MAX,), 9, dtype=torch.int32),
        ),
    )
    assert written["seq_lens"].tolist() == [38, 17, 33, 0, 0, 0]


def test_combine_sampled_and_draft_tokens():
    written = same(
        cpu_batch.combine_sampled_and_draft_tokens,
        original(input_batch, "combine_sampled_and_draft_tokens"),
        dict(
            input_ids=tokens(TOKENS, seed=1), idx_mapping=SLOTS,
            last_sampled_tokens=tokens(MAX, 1).long(), query_start_loc=STARTS,
            seq_lens=torch.tensor([38, 17, 33], dtype=torch.int32), prefill_len=PREFILL,
            draft_tokens=tokens(MAX, CANVAS, seed=3).long(), cu_num_logits=LOGITS,
        ),
        num_logits=8, num_new_sampled_tokens=0,
    )
    assert torch.equal(written["input_ids"][:8], tokens(MAX, CANVAS, seed=3)[4])


def test_expand_idx_mapping():
    same(
        cpu_batch.expand_idx_mapping, original(input_batch, "expand_idx_mapping"),
        dict(idx_mapping=SLOTS, cu_num_logits=torch.tensor([0, 8, 8, 13], dtype=torch.int32)),
        total_num_logits=13, max_expand_len=CANVAS,
    )


@pytest.mark.parametrize("starts", [STARTS, None], ids=["with rows", "without rows"])
def test_post_update(starts):
    tensors = dict(
        num_computed_tokens=COMPUTED, last_sampled_tokens=tokens(MAX, 1).long(),
        sampled_tokens=tokens(3, CANVAS, seed=4),
        num_sampled=torch.tensor([8, 0, 3], dtype=torch.int32),
        num_rejected=torch.tensor([8, 0, 2], dtype=torch.int32),
        all_token_ids=tokens(MAX, CONTEXT),
        total_len=torch.tensor([9, 0, 0, 33, 30, 0], dtype=torch.int32),
    )
    for slots in (SLOTS, torch.tensor([4, -1, 3], dtype=torch.int32)):
        same(
            cpu_batch.post_update, original(input_batch, "post_update"),
            tensors | {"idx_mapping": slots}, output_bin_counts=None, query_start_loc=starts,
        )


def test_post_update_num_computed_tokens():
    name = "post_update_num_computed_tokens"
    same(
        getattr(cpu_batch, name), original(input_batch, name),
        dict(idx_mapping=SLOTS, num_computed_tokens=COMPUTED, query_start_loc=STARTS),
    )


def tables(groups):
    """vLLM's, with pages written for slots 4, 0 and 3; the last of several maps no slots."""
    made = BlockTables(
        [PAGE, PAGE * 2, PAGE][:groups], MAX, TOKENS, [5, 4, 5][:groups], torch.device("cpu"),
        slot_mapping_enabled=[True, True, False][:groups],
    )
    for slot in SLOTS.tolist():
        for start in (1, 3):  # the second time behind the first
            pages = tuple([10 * slot + g + start, 10 * slot + g + 7] for g in range(groups))
            made.append_block_ids(slot, pages, overwrite=start == 1)
    return made


@pytest.mark.parametrize("groups", [1, 3])
def test_block_tables(groups, monkeypatch):
    found = []
    for mine in (True, False):
        for owner, name, ours in (
            (StagedWriteTensor, "apply_write", cpu_batch.apply_write),
            (FusedStagedWriter, "apply", cpu_batch.apply_writes),
            (BlockTables, "gather_block_tables", cpu_batch.gather_block_tables),
            (BlockTables, "compute_slot_mappings", cpu_batch.compute_slot_mappings),
        ):
            monkeypatch.setattr(owner, name, ours if mine else original(owner, name))
        made = tables(groups)
        made.apply_staged_writes()
        slots = torch.tensor([4, -1, 3], dtype=torch.int32)
        pos = torch.cat([torch.arange(30, 38), torch.arange(5, 17), torch.arange(20, 33)])
        gathered = made.gather_block_tables(SLOTS, 5)
        mapped = made.compute_slot_mappings(slots, STARTS[:4], pos, 40)
        found.append([*gathered, mapped, made.slot_mappings, *(t.gpu for t in made.block_tables)])
    assert (found[0][groups] >= 0).any()
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_writes_to_a_row_of_numbers(monkeypatch):
    for apply in (cpu_batch.apply_write, original(StagedWriteTensor, "apply_write")):
        row = StagedWriteTensor(MAX, torch.int32, torch.device("cpu"))
        row.stage_write_elem(4, 7)
        row.stage_write_elem(1, 9)
        apply(row)
        assert row.gpu.tolist() == [0, 9, 0, 0, 7, 0]
        assert not row._staged_write_indices
