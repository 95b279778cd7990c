"""The step around a forward by three kernels against plain torch, over whole requests."""

import torch
from around import LIMIT, REQUESTS, Host, Side, steps

from diffusiongemma_kernels.slots import Slots


def check_drafts(out, expected, state):
    """Those of slot 1: a canvas that goes on is what the state holds of it.  How many there are."""
    if expected.sampling_mask_tensors is None:
        assert out.sampling_mask_tensors is None
        return 0
    copies = [one.sampling_mask_tensors.to_cpu_nonblocking() for one in (expected, out)]
    if state.tokens.is_cuda:
        torch.cuda.synchronize()
    told, same = (copy.tolists(None).drafts for copy in copies)
    assert told == same and {*told} <= {"1"}
    for draft in told.values():
        if not draft["done"]:
            assert draft["tokens"] == state.tokens[1, : len(draft["tokens"])].tolist()
            assert draft["step"] == int(state.step[1])
    return len(told)


def test_whole_requests(device):
    ours, plain, host = Side(device, True), Side(device, False), Host()
    for side in (ours, plain):
        side.watch(1, device)
    settled, kinds, drafted = [], set(), 0
    for requests, batch, rows, hidden in steps(host, device):
        kinds |= {(drafts > 0, rows > drafts) for _, _, rows, drafts in requests}
        total = sum(rows for _, _, rows, _ in requests)
        seen = []
        for side in (ours, plain):
            ids = torch.full((total,), -1, dtype=torch.int32, device=device)
            parts, (soft, denoising) = side.inputs_of(rows, ids, total + 2)
            seen.append((*parts, ids, soft[denoising], denoising))
        for got, want in zip(*seen, strict=True):
            assert torch.equal(got, want)
        out, expected = (side.sampler(hidden, batch) for side in (ours, plain))
        drafted += check_drafts(out, expected, plain.state)
        lengths = expected.num_sampled.tolist()
        assert out.num_sampled.tolist() == lengths
        assert torch.equal(out.num_rejected, expected.num_rejected)
        for i, length in enumerate(lengths):
            assert torch.equal(
                out.sampled_token_ids[i, :length], expected.sampled_token_ids[i, :length]
            )
        for name in Slots._fields:
            assert torch.equal(getattr(ours.state, name), getattr(plain.state, name)), name
        host.update(requests, lengths, expected.num_rejected.tolist())
        settled += [length for length in lengths if length]
    assert host.text == [LIMIT] * REQUESTS, "every request reaches the end of its context"
    assert len(set(settled)) > 1, "whole canvases and short ones"
    assert drafted > len(settled) / 2
    assert kinds == {(True, False), (True, True), (False, True)}
