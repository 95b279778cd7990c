"""Loading a checkpoint into the model: every tensor has a place and every place a tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from diffusiongemma_vllm.model.attention import GLOBAL
from diffusiongemma_vllm.model.moe import TorchExperts
from diffusiongemma_vllm.model.weights import Target, target

FUSED = ("gate_up_proj", "down_proj")
SHOWN = 8


def load(model: nn.Module, config: Any, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Fill ``model`` from (name, tensor) pairs; returns the names of the filled parameters.

    config: the checkpoint's text config.

    Raises:
        ValueError: naming each tensor, with its shape, that has no place, has another shape than
            its place, or is missing.
    """
    shared_kv = frozenset(i for i, kind in enumerate(config.layer_types) if kind == GLOBAL)
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    expected = _expected(model)
    unknown, wrong = [], []
    filled: set[str] = set()
    for name, tensor in weights:
        place = target(name, shared_kv)
        if place is not None and place.expert is not None:
            try:
                done = _load_experts(model, place, tensor)
            except _Mismatch as error:
                wrong.append(f"{name} {error}")
                continue
        elif place is not None and place.parameter in places:
            done = _load_one(places[place.parameter], place, tensor)
            if done is None:
                shape = tuple(places[place.parameter].shape)
                wrong.append(f"{name} {tuple(tensor.shape)} does not fit {shape}")
                continue
        else:
            done = set()
        if not done:
            unknown.append(f"{name} {tuple(tensor.shape)}")
        filled |= done
    missing = [f"{name} {expected[name]}" for name in sorted(expected.keys() - filled)]
    _complain("does not fit config.json", wrong)
    _complain("has no place in this architecture", unknown)
    _complain("is missing from the checkpoint", missing)
    for layer in model.model.layers:
        layer.scalars_differ = bool(
            not layer.encoder_scalar.is_meta
            and not torch.equal(layer.encoder_scalar, layer.decoder_scalar)
        )
    return {name.rpartition("#")[0] or name for name in filled}


class _Mismatch(ValueError):
    pass


def _expected(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter and persistent buffer, stacked ones once a shard, with its shape.

    The shards of quantised experts are counted by vLLM's own loader.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    state = model.state_dict(keep_vars=True)
    for name, place in state.items():
        if name.startswith("lm_head.") or ".attn." in name:
            continue
        if "qkv_proj" in name:
            shards: tuple[Any, ...] = ("q", "k", "v")
        elif "gate_up_proj" in name and ".experts." not in name:
            shards = (0, 1)
        else:
            shards = (None,)
        for shard in shards:
            shapes[_key(name, shard)] = tuple(place.shape)
    return shapes


def _key(name: str, shard: Any) -> str:
    return name if shard is None else f"{name}#{shard}"


def _load_one(place: Tensor, goal: Target, tensor: Tensor) -> set[str] | None:
    """The keys filled, or None where the shapes differ."""
    loader = getattr(place, "weight_loader", default_weight_loader)
    for shard in goal.shards:
        try:
            if shard is None:
                if loader is default_weight_loader and place.shape != tensor.shape:
                    return None
                loader(place, tensor)
            else:
                loader(place, tensor, shard)
        except (AssertionError, RuntimeError):
            return None
    return {_key(goal.parameter, shard) for shard in goal.shards}


def _load_experts(model: nn.Module, goal: Target, tensor: Tensor) -> set[str]:
    experts = model.get_submodule(goal.parameter)
    name = goal.expert or ""
    if isinstance(experts, TorchExperts):
        if name not in FUSED:
            return set()
        place = getattr(experts, name)
        if place.shape != tensor.shape:
            raise _Mismatch(f"{tuple(tensor.shape)} does not fit {tuple(place.shape)}")
        place.data.copy_(tensor)
        return {f"{goal.parameter}.{name}"}
    loaded = experts.load_weights([(name, tensor)])
    return {f"{goal.parameter}.{leaf}" for leaf in loaded}


def _complain(what: str, tensors: list[str]) -> None:
    if not tensors:
        return
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    raise ValueError(
        f"checkpoint: {len(tensors)} tensor(s) of which each {what}: "
        f"{', '.join(tensors[:SHOWN])}{more}. Check that config.json and the safetensors files "
        "come from one DiffusionGemma checkpoint and were downloaded whole."
    )
