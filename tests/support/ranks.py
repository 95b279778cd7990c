"""Several ranks without processes: threads that exchange tensors, or one rank that hears nobody."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from diffusiongemma_vllm.model.ranks import Ranks


class Table:
    """Where so many threads put down tensors and take up everybody's."""

    def __init__(self, seats):
        self.barrier = threading.Barrier(seats, timeout=60)
        self.parts = [None] * seats

    def exchange(self, rank, x):
        self.parts[rank] = x.clone()
        self.barrier.wait()
        found = list(self.parts)
        self.barrier.wait()
        return found


class Seated(Ranks):
    """A rank of ``together``."""

    def __init__(self, rank, count, table):
        super().__init__(rank, count)
        object.__setattr__(self, "table", table)

    def sum(self, x):
        return torch.stack(self.table.exchange(self.rank, x)).sum(0)

    def gather(self, x):
        return torch.stack(self.table.exchange(self.rank, x))

    def join(self, x):
        return torch.cat(self.table.exchange(self.rank, x), -1)


def together(count, function):
    """function(ranks) on every rank at once; the results, rank by rank."""
    table, results, errors = Table(count), [None] * count, []

    def run(rank):
        try:
            results[rank] = function(Seated(rank, count, table))
        except BaseException as error:
            errors.append(error)
            table.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors, errors
    return results


@contextmanager
def pretending(rank, count):
    """vLLM's layers are made as this rank's, and hear nothing of the others."""
    from vllm.distributed import communication_op, parallel_state

    group = SimpleNamespace(rank_in_group=rank, world_size=count, all_reduce=lambda x: x)
    with pytest.MonkeyPatch.context() as patch:
        for module in (parallel_state, communication_op):
            patch.setattr(module, "get_tp_group", lambda: group)
        yield


# Sent to workers, whose ``sys.path`` is that of the tests.


class Seen(NamedTuple):
    """What one denoise step of a canvas read, and the logits [C, V], softcapped, it came to.

    canvas: request, position of its first token, how often it was drawn again.  tokens: [C] i64.
    """

    canvas: tuple[str, int, int]
    tokens: torch.Tensor
    logits: torch.Tensor


def record(worker):
    """From now on keep a ``Seen`` of every canvas in every denoise step."""
    from diffusiongemma_vllm.runner.sampler import DiffusionSampler

    sampler = worker.model_runner.sampler
    assert isinstance(sampler, DiffusionSampler)
    sampler.seen = []
    guess = sampler._guess

    def _guess(hidden, slots, slots_np):
        if len(slots_np):
            canvas = sampler.state.gather(slots)
            logits = sampler._capped(sampler.model.project(hidden))
            names = [sampler.req_states.index_to_req_id[slot] for slot in slots_np.tolist()]
            sampler.seen += [
                Seen((name.rsplit("-", 1)[0], base, roll), tokens, found)
                for name, base, roll, tokens, found in zip(
                    names, canvas.base.tolist(), canvas.roll.tolist(), canvas.tokens,
                    logits.clone().unflatten(0, (len(names), -1)), strict=True,
                )
            ]
        return guess(hidden, slots, slots_np)

    sampler._guess = _guess


def recorded(worker):
    """What was kept since ``record``, which ends here."""
    sampler = worker.model_runner.sampler
    seen = sampler.seen
    del sampler._guess, sampler.seen
    return seen


def state(worker):
    """Every tensor of the slots' state."""
    found = {}
    for owner in (worker.model_runner.sampler.state, worker.model_runner.sampler.state.knobs):
        found |= {n: x.clone() for n, x in vars(owner).items() if isinstance(x, torch.Tensor)}
    return found


def poison(worker, rank):
    """On one rank alone an expert's numbers are none any more, until ``heal``."""
    if worker.rank == rank:
        experts = worker.model_runner.model.model.layers[0].experts
        experts.healthy = experts.down_proj.data.clone()
        experts.down_proj.data.fill_(torch.nan)


def heal(worker, rank):
    if worker.rank == rank:
        experts = worker.model_runner.model.model.layers[0].experts
        experts.down_proj.data.copy_(experts.healthy)
        del experts.healthy


def held(worker):
    """Numbers of the experts, and heads of keys in each kind of layer, on this rank."""
    model = worker.model_runner.model.model
    experts = sum(x.numel() for layer in model.layers for x in layer.experts.parameters())
    return experts, {layer.self_attn.kind: layer.self_attn.kv_heads for layer in model.layers}
