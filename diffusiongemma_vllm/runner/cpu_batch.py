"""On CPU: the batch kernels of vLLM's V2 model runner in plain torch.

Triton's interpreter runs them too, in two thirds of a small model's time.  Each function takes and
writes what vLLM's of the same name does (``input_batch.py``, ``block_table.py`` of its V2 runner);
``tests/runner/test_cpu_batch.py`` compares the two.

N requests of a batch, in S slots; T rows of a forward, R of them with logits.  Of a batch:
idx_mapping [N] integers, the requests' slots; query_start_loc, cu_num_logits [N + 1] i32 or longer,
where their rows, and those with logits, begin; seq_lens [N] i32 or longer.  Of slots: prefill_len,
num_computed_tokens, total_len [S] i32; all_token_ids [S, L] i32; last_sampled_tokens [S, 1] i64;
draft_tokens [S, C] i64.  Of rows: input_ids i32 and positions i64, with room for T and more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backends.utils import PAD_SLOT_ID

from diffusiongemma_vllm.compat import patch


def install() -> None:
    """In a worker on CPU that serves DiffusionGemma, which serves nothing else.

    Removal: when vLLM's V2 runner has a CPU path of its own.
    """
    from vllm.v1.worker.gpu import model_runner
    from vllm.v1.worker.gpu.block_table import BlockTables
    from vllm.v1.worker.gpu.buffer_utils import FusedStagedWriter, StagedWriteTensor

    for function in (
        prepare_prefill_inputs, prepare_pos_seq_lens, combine_sampled_and_draft_tokens,
        expand_idx_mapping, post_update, post_update_num_computed_tokens,
    ):
        patch(model_runner, function.__name__, _instead(function))
    for method in (gather_block_tables, compute_slot_mappings):
        patch(BlockTables, method.__name__, _instead(method))
    patch(StagedWriteTensor, "apply_write", _instead(apply_write))
    patch(FusedStagedWriter, "apply", _instead(apply_writes))


def _instead(function: Callable[..., Any]) -> Callable[[Any], Callable[..., Any]]:
    def make(original: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return call

    return make


def _owners(starts: Tensor) -> tuple[Tensor, Tensor]:
    """starts: [N + 1]  ->  for each of starts[N] rows its request and its place there, [T] i64"""
    starts = starts.long()
    counts = starts.diff()
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return owner, torch.arange(len(owner)) - starts[owner] + starts[0]


def prepare_prefill_inputs(
    input_ids: Tensor, next_prefill_tokens: Tensor, idx_mapping: Tensor, query_start_loc: Tensor,
    all_token_ids: Tensor, prefill_len: Tensor, num_computed_tokens: Tensor,
) -> None:
    """Write the prompts' tokens of this forward into input_ids, and the next ones.

    next_prefill_tokens: [A, S] i32, the A tokens behind, 0 where a prompt has no more.
    """
    ahead = next_prefill_tokens.shape[0]
    starts = query_start_loc.tolist()
    for i, slot in enumerate(idx_mapping.tolist()):
        length, computed = int(prefill_len[slot]), int(num_computed_tokens[slot])
        if computed >= length:
            continue
        end = computed + starts[i + 1] - starts[i]
        input_ids[starts[i] : starts[i + 1]] = all_token_ids[slot, computed:end]
        coming = all_token_ids[slot, end : min(end + ahead, length)]
        next_prefill_tokens[:, slot] = 0
        next_prefill_tokens[: len(coming), slot] = coming


def prepare_pos_seq_lens(
    idx_mapping: Tensor, query_start_loc: Tensor, num_computed_tokens: Tensor, pos: Tensor,
    seq_lens: Tensor,
) -> None:
    """Write each row's position, pos [T] i64, and each request's length behind it, 0 for none."""
    count = len(idx_mapping)
    starts = query_start_loc[: count + 1]
    computed = num_computed_tokens[idx_mapping.long()]
    seq_lens[:count] = computed + starts.diff()
    seq_lens[count:] = 0
    owner, place = _owners(starts)
    pos[int(starts[0]) : int(starts[-1])] = computed[owner] + place


def combine_sampled_and_draft_tokens(  # noqa: PLR0913  vLLM's signature
    input_ids: Tensor, idx_mapping: Tensor, last_sampled_tokens: Tensor, query_start_loc: Tensor,
    seq_lens: Tensor, prefill_len: Tensor, draft_tokens: Tensor, cu_num_logits: Tensor,
    num_logits: int, num_new_sampled_tokens: int = 1,
) -> Tensor:
    """Write the canvases, draft_tokens, into input_ids.   ->  [R] i64, the rows with logits"""
    assert num_new_sampled_tokens == 0, "a canvas is all drafts"
    count = len(idx_mapping)
    slots = idx_mapping.long()
    owner, place = _owners(cu_num_logits[: count + 1])
    counts = cu_num_logits[: count + 1].diff().long()
    rows = (query_start_loc[1 : count + 1].long() - counts)[owner] + place
    canvas = (seq_lens[:count] > prefill_len[slots])[owner]
    input_ids[rows[canvas]] = draft_tokens[slots[owner], place][canvas].to(input_ids.dtype)
    return rows


def expand_idx_mapping(
    idx_mapping: Tensor, total_num_logits: int, cu_num_logits: Tensor, max_expand_len: int
) -> tuple[Tensor, Tensor]:
    """Each row with logits: its slot, [R] as idx_mapping, and its place in its request, [R] i32."""
    owner, place = _owners(cu_num_logits[: len(idx_mapping) + 1])
    return idx_mapping[owner], place.to(torch.int32)


def post_update(  # noqa: PLR0913  vLLM's signature
    idx_mapping: Tensor, num_computed_tokens: Tensor, last_sampled_tokens: Tensor,
    output_bin_counts: Tensor | None, sampled_tokens: Tensor, num_sampled: Tensor,
    num_rejected: Tensor, query_start_loc: Tensor | None, all_token_ids: Tensor, total_len: Tensor,
) -> None:
    """Write what a step gave into the slots; a slot of -1 is nobody's.

    sampled_tokens: [N, C] i32, num_sampled [N] i32 of them.  num_rejected: [N] i32, rows that
    computed nothing that lasts.  query_start_loc: None for no rows.
    """
    assert output_bin_counts is None, "our sampler counts no tokens"
    rejected = num_rejected.tolist()
    lengths = [0] * len(rejected)
    if query_start_loc is not None:
        lengths = query_start_loc[: len(rejected) + 1].diff().tolist()
    for i, (slot, sampled) in enumerate(
        zip(idx_mapping.tolist(), num_sampled.tolist(), strict=True)
    ):
        if slot < 0:
            continue
        if sampled > 0:
            total = int(total_len[slot])
            all_token_ids[slot, total : total + sampled] = sampled_tokens[i, :sampled]
            last_sampled_tokens.view(-1)[slot] = sampled_tokens[i, sampled - 1]
            total_len[slot] = total + sampled
        num_computed_tokens[slot] += lengths[i] - rejected[i]


def post_update_num_computed_tokens(
    idx_mapping: Tensor, num_computed_tokens: Tensor, query_start_loc: Tensor
) -> None:
    """Every row of the batch is computed."""
    num_computed_tokens[idx_mapping.long()] += query_start_loc[: len(idx_mapping) + 1].diff()


def gather_block_tables(
    tables: Any, idx_mapping: Tensor, num_reqs_padded: int,
    out: tuple[Tensor, ...] | None = None, out_ptrs: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The pages of each request, for each group of layers [num_reqs_padded, pages] i32.

    tables: vLLM's ``BlockTables``.  out: in place of its own, [S, pages] i32 each; written.
    """
    count, slots = len(idx_mapping), idx_mapping.long()
    found = tuple(tables.input_block_tables) if out is None else out
    for source, target in zip(tables.block_tables, found, strict=True):
        target[:count] = source.gpu[slots]
        target[count:num_reqs_padded] = 0
    return tuple(target[:num_reqs_padded] for target in found)


def compute_slot_mappings(
    tables: Any, idx_mapping: Tensor, query_start_loc: Tensor, positions: Tensor,
    num_tokens_padded: int, out: Tensor | None = None,
) -> Tensor:
    """Where each row's key goes, -1 for nowhere.   ->  [groups of layers, num_tokens_padded] i64

    tables: vLLM's ``BlockTables``.  out: in place of its own, [groups, T or more] i64; written.
    A slot of -1 is nobody's.
    """
    assert tables.cp_size == 1, "context parallelism is refused"
    mappings = tables.slot_mappings if out is None else out
    owner, _ = _owners(query_start_loc[: len(idx_mapping) + 1])
    slots = idx_mapping.long()[owner]
    pos = positions[: len(owner)].long()
    mappings.fill_(PAD_SLOT_ID)
    for group, (table, size) in enumerate(
        zip(tables.block_tables, tables.block_sizes, strict=True)
    ):
        if tables._slot_mapping_enabled[group]:
            pages = table.gpu[slots.clamp(min=0), pos // size].long()
            at = pages * size + pos % size
            mappings[group, : len(owner)] = torch.where(slots >= 0, at, PAD_SLOT_ID)
    return mappings[:, :num_tokens_padded]


def apply_write(tensor: Any) -> None:
    """Write what is staged, row by row, and forget it.  tensor: vLLM's ``StagedWriteTensor``."""
    flat, row, start = tensor.gpu.view(-1), tensor.gpu.stride(0), 0
    for index, place, end in zip(
        tensor._staged_write_indices, tensor._staged_write_starts, tensor._staged_write_cu_lens,
        strict=True,
    ):
        at = index * row + place
        content = torch.tensor(tensor._staged_write_contents[start:end], dtype=tensor.dtype)
        flat[at : at + end - start] = content
        start = end
    tensor.clear_staged_writes()


def apply_writes(
    writer: Any, tensors: Sequence[Any], output_ptrs: Tensor, output_strides: Tensor
) -> None:
    """The same for several.  writer: vLLM's ``FusedStagedWriter``.  The rest is for its kernel."""
    for tensor in tensors:
        apply_write(tensor)
