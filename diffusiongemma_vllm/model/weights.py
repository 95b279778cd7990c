"""Checkpoint name -> parameter, as a table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

Shard = str | int | None

LAYER = re.compile(r"model\.decoder\.layers\.(\d+)\.(.+)")
ENCODER_SCALAR = re.compile(r"model\.encoder\.language_model\.layers\.(\d+)\.layer_scalar")
SELF_CONDITIONING = re.compile(r"model\.decoder\.self_conditioning\.(\w+)\.(\w+)")
ATTENTION = re.compile(r"self_attn\.([qkv])_proj\.(.+)")
GATED = re.compile(r"(gate|up)_proj\.(.+)")
VISION = {
    "model.encoder.vision_tower.": "vision.tower.",
    "model.encoder.embed_vision.": "vision.projector.",
}
GATE_UP = {"gate": 0, "up": 1}
PACKED = {
    "qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"],
}
GLOBAL = "full_attention"


@dataclass(frozen=True)
class Target:
    """Where one tensor of a checkpoint goes.

    parameter: name below our model.  shards: parts of a stacked parameter that it fills.
    expert: what follows ``experts.`` in the checkpoint, for the expert loader.
    """

    parameter: str
    shards: tuple[Shard, ...] = (None,)
    expert: str | None = None


def shared_kv(config: Any) -> frozenset[int]:
    """The layers of a text config whose value is their key projection."""
    return frozenset(i for i, kind in enumerate(config.layer_types) if kind == GLOBAL)


def target(name: str, shared_kv: frozenset[int]) -> Target | None:
    """Where ``name`` of a checkpoint belongs; None for a name that the architecture does not have.

    shared_kv: the layers whose value is their key projection.
    """
    for theirs, ours in VISION.items():
        if name.startswith(theirs):
            return Target(ours + name.removeprefix(theirs))
    if name in ("model.decoder.embed_tokens.weight", "model.decoder.norm.weight"):
        return Target("model." + name.removeprefix("model.decoder."))
    if match := ENCODER_SCALAR.fullmatch(name):
        return Target(f"model.layers.{match[1]}.encoder_scalar")
    if match := SELF_CONDITIONING.fullmatch(name):
        return _gated("model.self_conditioning", f"{match[1]}.{match[2]}")
    if match := LAYER.fullmatch(name):
        return _layer(int(match[1]), match[2], shared_kv)
    return None


def _gated(root: str, rest: str) -> Target:
    """A gated MLP, whose gate and up projections are stacked."""
    if match := GATED.fullmatch(rest):
        return Target(f"{root}.gate_up_proj.{match[2]}", (GATE_UP[match[1]],))
    return Target(f"{root}.{rest}")


def _layer(index: int, rest: str, shared_kv: frozenset[int]) -> Target | None:
    root = f"model.layers.{index}"
    if rest in ("encoder_scalar", "decoder_scalar"):
        return None  # our names, not the checkpoint's
    if rest == "layer_scalar":
        return Target(f"{root}.decoder_scalar")
    if rest.startswith("experts."):
        return Target(f"{root}.experts", expert=rest.removeprefix("experts."))
    if match := ATTENTION.fullmatch(rest):
        shards: tuple[Shard, ...] = (match[1],)
        if index in shared_kv:
            if match[1] == "v":
                return None
            shards = ("k", "v") if match[1] == "k" else shards
        return Target(f"{root}.self_attn.qkv_proj.{match[2]}", shards)
    if rest.startswith("mlp."):
        return _gated(f"{root}.mlp", rest.removeprefix("mlp."))
    return Target(f"{root}.{rest}")


def source(parameter: str, shard: Shard, shared_kv: frozenset[int]) -> str:
    """The checkpoint's name for (a part of) a parameter: what ``target`` leads back from."""
    for theirs, ours in VISION.items():
        if parameter.startswith(ours):
            return theirs + parameter.removeprefix(ours)
    name = parameter.replace("model.", "model.decoder.", 1)
    if name.endswith(".encoder_scalar"):
        layer = name.removesuffix(".encoder_scalar").removeprefix("model.decoder.")
        return f"model.encoder.language_model.{layer}.layer_scalar"
    name = name.replace(".decoder_scalar", ".layer_scalar")
    if shard is None:
        return name
    if "gate_up_proj" in name:
        return name.replace("gate_up_proj", "up_proj" if shard else "gate_proj")
    index = int(name.split(".")[3])
    letter = "k" if shard == "v" and index in shared_kv else shard
    return name.replace("qkv_proj", f"{letter}_proj")
