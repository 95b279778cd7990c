"""LoRA adapters as PEFT saves them: which are let in, and where their weights go.

Encoder and decoder share one set of weights, whose names are the decoder's: an adapter of
``model.decoder`` changes prompts, canvases and committed text alike, as if it were merged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from vllm.exceptions import LoRAAdapterNotFoundError
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.utils import get_adapter_absolute_path

from diffusiongemma_vllm.model.weights import shared_kv, target

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
SHOWN = 4

Shape = tuple[int, ...]


def adaptable(config: Any) -> dict[str, tuple[int, int]]:
    """The checkpoint's name of every projection that may be adapted -> its width in and out."""
    hidden, dense = config.hidden_size, config.intermediate_size
    gated = {
        "gate_proj": (hidden, dense), "up_proj": (hidden, dense), "down_proj": (dense, hidden)
    }
    found = {f"model.decoder.self_conditioning.{name}": gated[name] for name in gated}
    for i in range(config.num_hidden_layers):
        layer = config.per_layer_config[i]
        q = layer.head_dim * config.num_attention_heads
        kv = layer.head_dim * layer.num_key_value_heads
        attention = {
            "q_proj": (hidden, q), "k_proj": (hidden, kv), "v_proj": (hidden, kv),
            "o_proj": (q, hidden),
        }
        if i in shared_kv(config):
            del attention["v_proj"]
        root = f"model.decoder.layers.{i}"
        found |= {f"{root}.self_attn.{name}": attention[name] for name in attention}
        found |= {f"{root}.mlp.{name}": gated[name] for name in gated}
    return found


def layer_of(module: str, config: Any) -> str:
    """Our layer that holds an adaptable projection."""
    place = target(f"{module}.weight", shared_kv(config))
    assert place is not None, module
    return place.parameter.removesuffix(".weight")


def check(request: Any, lora_config: Any, config: Any) -> None:
    """Read an adapter's files as far as needed to know that it can be served.

    request: vLLM's ``LoRARequest``.  config: the checkpoint's text config.

    Raises:
        FileNotFoundError: where there is no adapter.
        ValueError: naming the adapter, what is wrong with it, and what would do.
    """
    folder = Path(get_adapter_absolute_path(request.lora_path))
    where = f"LoRA adapter {request.lora_name!r} ({folder})"
    stamps = tuple((folder / name).stat().st_mtime_ns for name in (CONFIG, WEIGHTS))
    try:
        peft, shapes = _read(folder, stamps)
        peft.validate_legal(lora_config)
        _check_tensors(shapes, peft, lora_config, config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def check_there(request: Any, lora_config: Any, config: Any) -> None:
    """The same in the engine, where vLLM tells an adapter that is missing by its own error."""
    try:
        check(request, lora_config, config)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LoRAAdapterNotFoundError(request.lora_name, request.lora_path) from error


@lru_cache(maxsize=64)
def _read(folder: Path, stamps: tuple[int, ...]) -> tuple[PEFTHelper, dict[str, Shape]]:
    """The adapter's config, and the shapes of its tensors by their names without PEFT's prefix."""
    try:
        peft = PEFTHelper.from_local_dir(str(folder), None)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return peft, {
                name.removeprefix(PREFIX): tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118
            }
    except (json.JSONDecodeError, SafetensorError, TypeError) as error:
        raise ValueError(f"its files cannot be read: {error}") from None


def _check_tensors(
    shapes: Mapping[str, Shape], peft: PEFTHelper, lora_config: Any, config: Any
) -> None:
    known = {
        module: widths for module, widths in adaptable(config).items()
        if layer_of(module, config) in lora_config.target_modules
    }
    modules = sorted({name.split(".lora_")[0] for name in shapes})
    unknown = [module for module in modules if module not in known]
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise ValueError(
            f"it changes {', '.join(unknown[:SHOWN])}{more}; served are adapters of attention "
            "(q_proj, k_proj, o_proj, and v_proj where a layer has one) and of the dense MLPs "
            "(gate_proj, up_proj, down_proj) in model.decoder, whose weights the encoder shares"
            + _narrowed(lora_config, config)
        )
    if not modules:
        raise ValueError("it is empty")
    for module in modules:
        rank, _ = peft.get_rank_and_scaling(module)
        width, out = known[module]
        for name, shape in (("lora_A", (rank, width)), ("lora_B", (out, rank))):
            found = shapes.get(f"{module}.{name}.weight")
            if found != shape:
                raise ValueError(f"{module}.{name}.weight must have shape {shape}, found {found}")


def _narrowed(lora_config: Any, config: Any) -> str:
    everything = {layer_of(module, config) for module in adaptable(config)}
    if everything.issubset(lora_config.target_modules):
        return ""
    return ", as far as --lora-target-modules allows"


def share_keys(adapter: Any, config: Any) -> None:
    """Adapt the value of a layer without v_proj like its key.  adapter: vLLM's ``LoRAModel``."""
    for i in shared_kv(config):
        root = f"model.layers.{i}.self_attn"
        key = adapter.loras.get(f"{root}.k_proj")
        if key is not None:
            value = copy(key)
            value.module_name = f"{root}.v_proj"
            value.lora_b = key.lora_b.clone()  # vLLM scales it in place
            adapter.loras[value.module_name] = value
