"""What a checkpoint's files must say before an engine is made of them.

Every refusal is a ValueError that names the file, what is wrong in it, and the fix.  The tensors
themselves are checked where they are loaded (``model/loading.py``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusiongemma_vllm.config import GENERATION_CONFIG as GENERATION
from diffusiongemma_vllm.config import SOURCE, is_number

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer.model")  # one of them
SLIDING, FULL = "sliding_attention", "full_attention"
POSITIVE = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_experts",
    "top_k_experts", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "sliding_window", "max_position_embeddings",
)
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": "vision",
}
LFS = b"version https://git-lfs"
PREFIX = 8  # bytes in front of a safetensors header that hold its length
SAFETENSORS = (None, "auto", "safetensors")  # load formats


def check(source: Any, load_format: str | None = None) -> None:
    """Check the files that an engine will be made of.

    source: vLLM's ``EngineArgs`` or ``ModelConfig``.

    Raises:
        ValueError: naming the first file that is wrong, with the fix.
    """
    path = _find(source.hf_config_path or source.model, CONFIG, source.revision)
    if path is not None and not callable(source.hf_overrides):
        check_config(_merged(read_json(path), source.hf_overrides or {}), path)
    folder = Path(source.model_weights or source.model)
    if folder.is_dir() and load_format in SAFETENSORS:
        check_weights(folder)
    skipped = source.skip_tokenizer_init or getattr(source, "tokens_only", False)
    if not skipped and source.tokenizer_mode in ("auto", "hf"):
        check_tokenizer(Path(source.tokenizer or source.model), ", or serve with --tokenizer")


def check_tokenizer(folder: Path, otherwise: str = "") -> None:
    """Check that a local folder holds a tokenizer: transformers makes an empty one of nothing.

    otherwise: what else the caller could do.

    Raises:
        ValueError: naming the file that is missing.
    """
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER):
        raise ValueError(
            f"{folder} holds no {TOKENIZER[0]}: download the tokenizer of the checkpoint too (from "
            f"its own repository, such as {SOURCE}){otherwise}"
        )


def generation_config(source: Any) -> dict[str, Any]:
    """``generation_config.json`` with ``--override-generation-config`` on top.

    source: vLLM's ``ModelConfig``.

    Raises:
        ValueError: where the file is not valid JSON.
    """
    given = source.generation_config
    model = source.hf_config_path or source.model
    if given in ("auto", "vllm"):
        path = _find(model, GENERATION, source.revision)
    else:
        path = _find(given, GENERATION, None)
    written = {} if path is None else read_json(path)
    return written | (source.override_generation_config or {})


def _find(model: str, name: str, revision: str | None) -> Path | None:
    """A file of a local or a downloaded checkpoint; None where there is none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(model, name, revision=revision)
    except OSError:
        return None
    return None if path is None else Path(path)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if both else value
    return merged


def check_config(config: Mapping[str, Any], path: Path | str = CONFIG) -> None:
    """Check ``config.json`` as written, before any library fills its gaps with defaults.

    Raises:
        ValueError: for the first field that does not describe a DiffusionGemma.
    """
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise _wrong(path, "text_config must be an object", text)
    _positive(path, config, "canvas_length")
    for name in POSITIVE:
        _positive(path, text, name)
    for owner in (config, text):
        if owner.get("tie_word_embeddings", True) is not True:
            raise _wrong(path, "tie_word_embeddings must be true", owner["tie_word_embeddings"])
    for name, only in FIXED.items():
        if text.get(name) not in (only, None):
            raise _wrong(path, f"{name} must be {json.dumps(only)}", text[name])
    for name in ("final_logit_softcapping", "rms_norm_eps"):
        if not is_number(text.get(name)) or text[name] <= 0:
            raise _wrong(path, f"{name} must be a number above 0", text.get(name))
    if text["top_k_experts"] > text["num_experts"]:
        wanted = f"top_k_experts must be at most num_experts, {text['num_experts']}"
        raise _wrong(path, wanted, text["top_k_experts"])
    _check_layers(path, text)
    _check_rope(path, text)
    _check_heads(path, text)


def _check_layers(path: Path | str, text: Mapping[str, Any]) -> None:
    kinds, count = text.get("layer_types"), text["num_hidden_layers"]
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= {SLIDING, FULL}:
        raise _wrong(path, f"layer_types must be a list of {SLIDING!r} and {FULL!r}", kinds)
    if len(kinds) != count:
        wanted = f"layer_types must name num_hidden_layers = {count} layers"
        raise _wrong(path, wanted, len(kinds))
    if kinds[-1] != FULL:
        raise _wrong(path, f"the last of layer_types must be {FULL!r}", kinds[-1])


def _check_rope(path: Path | str, text: Mapping[str, Any]) -> None:
    ropes = text.get("rope_parameters")
    for kind in sorted(set(text["layer_types"])):
        rope = ropes.get(kind) if isinstance(ropes, Mapping) else None
        if not isinstance(rope, Mapping):
            raise _wrong(path, f"rope_parameters must have an object {kind!r}", rope)
        if rope.get("rope_type") not in ("default", "proportional"):
            wanted = f"rope_parameters {kind!r}: rope_type must be 'default' or 'proportional'"
            raise _wrong(path, wanted, rope.get("rope_type"))
        if not is_number(rope.get("rope_theta")) or rope["rope_theta"] <= 0:
            wanted = f"rope_parameters {kind!r}: rope_theta must be a number above 0"
            raise _wrong(path, wanted, rope.get("rope_theta"))


def _check_heads(path: Path | str, text: Mapping[str, Any]) -> None:
    """Query heads share key heads evenly, in local and in global layers."""
    if text.get("num_global_key_value_heads") is not None:
        _positive(path, text, "num_global_key_value_heads")
    if "global_head_dim" in text:
        _positive(path, text, "global_head_dim")
    layers = text.get("per_layer_config")
    if not isinstance(layers, Mapping | None):
        raise _wrong(path, "per_layer_config must be an object", layers)
    for index, layer in (layers or {}).items():
        if not isinstance(layer, Mapping):
            raise _wrong(path, f"per_layer_config {index!r} must be an object", layer)
        for name in ("num_key_value_heads", "head_dim"):
            if name in layer:
                _positive(path, layer, name, f"per_layer_config {index!r}: ")
    heads = text["num_attention_heads"]
    for index, kind in enumerate(text["layer_types"]):
        kv_heads, head_dim = text["num_key_value_heads"], text["head_dim"]
        if kind == FULL:
            layer = (layers or {}).get(str(index), {})
            kv_heads = text.get("num_global_key_value_heads") or kv_heads
            kv_heads = layer.get("num_key_value_heads", kv_heads)
            head_dim = layer.get("head_dim", text.get("global_head_dim", head_dim))
        if heads % kv_heads:
            wanted = f"num_attention_heads must be a multiple of the {kv_heads} key heads of layer"
            raise _wrong(path, f"{wanted} {index}", heads)
        if head_dim % 2:
            raise _wrong(path, f"the head_dim of layer {index} must be even", head_dim)


def check_weights(folder: Path) -> None:
    """Check that the safetensors files of a local checkpoint are all there and whole.

    Reads headers alone.

    Raises:
        ValueError: naming the first file that is missing, cut off or not a safetensors file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} holds no *.safetensors file: download the weights of the checkpoint too"
        )
    index = folder / INDEX
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, Mapping):
            raise _wrong(index, "weight_map must be an object", named)
        for name in sorted(set(named.values())):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{index} names {name}, which is not in {folder}: download the checkpoint again"
                )
    for path in files:
        _check_file(path)


def _check_file(path: Path) -> None:
    again = "download the file again"
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(PREFIX)
        if LFS.startswith(prefix) and prefix:
            raise ValueError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull`")
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == PREFIX else size
        if PREFIX + length > size:
            raise ValueError(f"{path} is cut off in its header, at {size} bytes: {again}")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items()
                    if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ValueError(f"{path} has no safetensors header: {again}") from None
    expected = PREFIX + length + max(ends, default=0)
    if size != expected:
        raise ValueError(f"{path} has {size} bytes where its header says {expected}: {again}")


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError where the file holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download the file again") from None
    if not isinstance(content, dict):
        raise _wrong(path, "the file must hold an object", content)
    return content


def _positive(path: Path | str, owner: Mapping[str, Any], name: str, where: str = "") -> None:
    value = owner.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(path, f"{where}{name} must be a whole number above 0", value)


def _wrong(path: Path | str, wanted: str, found: Any) -> ValueError:
    shown = "nothing" if found is None else repr(found)
    return ValueError(
        f"{path}: {wanted}, found {shown}; take the file from the checkpoint's own repository "
        f"(such as {SOURCE}) or correct the field"
    )
