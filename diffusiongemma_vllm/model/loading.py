"""Loading a checkpoint into the model: every tensor has a place and every place a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.parameter import PerTensorScaleParameter

from diffusiongemma_vllm.model.experts import Nvfp4Experts, OurExperts
from diffusiongemma_vllm.model.place import Place
from diffusiongemma_vllm.model.weights import Shard, Target, shared_kv, source, target

SHOWN = 8
SEPARATE = ("gate_proj", "up_proj", "down_proj")

Key = tuple[str, Shard]  # a parameter of ours, or a part of experts, and the shard of it


def load(model: nn.Module, config: Any, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Fill ``model`` from (name, tensor) pairs; returns the names of the filled parameters.

    config: the checkpoint's text config.

    Raises:
        ValueError: naming each tensor, with its shape, that has no place, has another shape than
            its place, or is missing.
    """
    shared = shared_kv(config)
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    modules = dict(model.named_modules())
    experts = {name: x.places() for name, x in modules.items() if isinstance(x, OurExperts)}
    expected = _expected(model, modules, experts)
    unknown, wrong = [], []
    filled: set[Key] = set()
    theirs: dict[str, set[str]] = {}  # by vLLM's quantised experts: what follows their name
    for name, tensor in weights:
        place = target(name, shared)
        done: set[Key] = set()
        try:
            if place is None:
                pass
            elif place.parameter in experts:
                done = _load_experts(experts[place.parameter], place, tensor)
            elif place.expert is not None and place.parameter in modules:
                done = _load_vllms_experts(modules[place.parameter], place, tensor)
                theirs.setdefault(place.parameter, set()).add(place.expert)
            elif (place.parameter, place.shards[0]) in expected:
                shape = expected[place.parameter, place.shards[0]]
                done = _load_one(places[place.parameter], place, tensor, shape)
        except _Mismatch as error:
            wrong.append(f"{name} {tuple(tensor.shape)} does not fit {error}")
            continue
        if not done:
            unknown.append(f"{name} {tuple(tensor.shape)}")
        filled |= done
    missing = {
        f"{source(*key, shared)} {shape}" for key, shape in expected.items() if key not in filled
    }
    for prefix, found in theirs.items():
        of = source(prefix, None, shared)
        missing |= {f"{of}.{name}" for name in _lacking(found, config.num_experts)}
    _complain("does not fit config.json", wrong)
    _complain("has no place in this architecture", unknown)
    _complain("is missing from the checkpoint", sorted(missing))
    layers: Any = model.get_submodule("model.layers")
    for layer in layers:
        layer.scalars_differ = bool(
            not layer.encoder_scalar.is_meta
            and not torch.equal(layer.encoder_scalar, layer.decoder_scalar)
        )
    for name, module in modules.items():
        if isinstance(module, Nvfp4Experts):
            module.check(source(name, None, shared))
    held = {name for name in places if name.rpartition(".")[0] in experts}
    return {name for name, _ in filled if name in places} | held


class _Mismatch(ValueError):
    """Says the shape that would fit."""


def _expected(
    model: nn.Module, modules: dict[str, nn.Module], experts: dict[str, dict[str, Place]]
) -> dict[Key, tuple[int, ...]]:
    """Every parameter and persistent buffer, stacked ones once a shard, with its shape, whole.

    vLLM's quantised experts are here as wholes; ``_lacking`` counts their shards.
    """
    shapes: dict[Key, tuple[int, ...]] = {
        (f"{prefix}.{name}", None): place.shape
        for prefix, places in experts.items() for name, place in places.items()
    }
    state = model.state_dict(keep_vars=True)
    for name, place in state.items():
        prefix = name.rpartition(".")[0]
        if name.startswith("lm_head.") or ".attn." in name or prefix in experts:
            continue
        for shard, shape in _whole(modules[prefix], name.rpartition(".")[2], place):
            shapes[name, shard] = shape
    return shapes


def _whole(owner: Any, leaf: str, place: Tensor) -> Iterable[tuple[Shard, tuple[int, ...]]]:
    """The checkpoint's tensors behind a parameter of which this rank holds a part.

    owner: the module whose parameter ``place`` is.
    """
    held = tuple(place.shape)
    sizes: dict[Shard, int] = {}
    if isinstance(owner, QKVParallelLinear):
        keys = owner.total_num_kv_heads * owner.head_size
        sizes = {"q": owner.total_num_heads * owner.head_size, "k": keys, "v": keys}
    elif isinstance(owner, MergedColumnParallelLinear):
        sizes = dict(enumerate(owner.output_sizes))
    if sizes:
        if isinstance(place, PerTensorScaleParameter):
            return [(s, (1,)) for s in sizes]
        along: int | None = getattr(place, "output_dim", None)
        if along is None:  # every shard says the same, the order of columns for example
            return [(s, held) for s in sizes]
        rows = owner.output_size_per_partition  # an entry may stand for several
        before, part, behind = held[:along], held[along], held[along + 1 :]
        return [(s, (*before, part * size // rows, *behind)) for s, size in sizes.items()]
    if isinstance(owner, RowParallelLinear) and leaf == "weight":
        return [(None, (*held[:-1], owner.input_size))]
    if isinstance(owner, VocabParallelEmbedding):  # its rows are padded
        return [(None, (owner.org_vocab_size, *held[1:]))]
    return [(None, held)]


def _load_one(place: Tensor, goal: Target, tensor: Tensor, shape: tuple[int, ...]) -> set[Key]:
    """Raises _Mismatch where the shapes differ: vLLM's loaders would cut what is too large."""
    if tensor.shape != shape and tensor.dim():
        raise _Mismatch(shape)
    loader: Callable[..., None] = getattr(place, "weight_loader", default_weight_loader)
    for shard in goal.shards:
        try:
            loader(place, tensor, *(() if shard is None else (shard,)))
        except (AssertionError, RuntimeError, IndexError):
            raise _Mismatch(shape) from None
    return {(goal.parameter, shard) for shard in goal.shards}


def _load_experts(places: dict[str, Place], goal: Target, tensor: Tensor) -> set[Key]:
    """Raises _Mismatch where shape or kind of number differ: codes must not be converted."""
    place = places.get(goal.expert or "")
    if place is None:
        return set()
    coded = torch.uint8 in (place.dtype, tensor.dtype) or torch.float8_e4m3fn in (
        place.dtype, tensor.dtype,
    )
    if place.shape != tuple(tensor.shape) or (coded and place.dtype != tensor.dtype):
        shown = str(place.dtype).removeprefix("torch.")
        raise _Mismatch(f"{place.shape} {shown}" if coded else place.shape)
    place.fill(tensor)
    return {(f"{goal.parameter}.{goal.expert}", None)}


def _load_vllms_experts(experts: Any, goal: Target, tensor: Tensor) -> set[Key]:
    loaded = experts.load_weights([(goal.expert or "", tensor)])
    return {(f"{goal.parameter}.{leaf}", None) for leaf in loaded}


def _lacking(found: set[str], experts: int) -> Iterator[str]:
    """What some of vLLM's experts have and one has not.

    found: ``N.down_proj.weight_scale`` and the like; names without a number are whole.
    """
    parts = [name.split(".", 2) for name in found if name[0].isdigit()]
    leaves = {(projection, leaf) for _, _, leaf in parts for projection in SEPARATE}
    for expert in range(experts):
        for projection, leaf in sorted(leaves):
            name = f"{expert}.{projection}.{leaf}"
            if name not in found:
                yield name


def _complain(what: str, tensors: list[str]) -> None:
    if not tensors:
        return
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    raise ValueError(
        f"checkpoint: {len(tensors)} tensor(s) of which each {what}: "
        f"{', '.join(tensors[:SHOWN])}{more}. Check that config.json and the safetensors files "
        "come from one DiffusionGemma checkpoint and were downloaded whole."
    )
