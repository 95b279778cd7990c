"""The BF16 checkpoint that is quantised: checked whole before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from diffusiongemma_vllm import checkpoint
from diffusiongemma_vllm.quantisation import BLOCK

GATE_UP, DOWN = "gate_up_proj", "down_proj"
FUSED = re.compile(rf"(model\.decoder\.layers\.(\d+)\.experts)\.({GATE_UP}|{DOWN})")
# What a fused tensor is made of, from its first row to its last.
PROJECTIONS = {GATE_UP: ("gate_proj", "up_proj"), DOWN: ("down_proj",)}
FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Source:
    """A folder with config.json and safetensors files."""

    folder: Path
    config: dict[str, Any]
    files: dict[str, list[str]]  # file name -> its tensors' names

    @property
    def text(self) -> Mapping[str, Any]:
        text: Mapping[str, Any] = self.config["text_config"]
        return text


def version(path: Path) -> list[int]:
    """Another one where the file has changed."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def find(name: str) -> Path:
    """The folder of a checkpoint: a local one, or one downloaded from the Hugging Face hub.

    Raises:
        ValueError: where there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except Exception as error:
        raise ValueError(
            f"SRC {name} is no folder, and the hub did not give it ({error}): pass the folder of a "
            "downloaded BF16 checkpoint"
        ) from None


def read(folder: Path) -> Source:
    """Check config and headers of a checkpoint with fused experts.

    Raises:
        ValueError: naming the file or the tensor that is missing, quantised already, or of a shape
            that config.json does not give it.
    """
    path = folder / checkpoint.CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {checkpoint.CONFIG}: pass a checkpoint's folder")
    config = checkpoint.read_json(path)
    checkpoint.check_config(config, path)
    checkpoint.check_weights(folder)
    if "quantization_config" in config:
        raise ValueError(f"{path}: the checkpoint is quantised already; pass the BF16 one")
    files, shapes = {}, {}
    for name in _names(folder):
        with safe_open(folder / name, "pt") as file:
            files[name] = list(file.keys())
            for tensor in files[name]:
                if FUSED.fullmatch(tensor):
                    part = file.get_slice(tensor)
                    shapes[tensor] = (part.get_shape(), part.get_dtype())
    source = Source(folder, config, files)
    _check_experts(source, shapes)
    return source


def _names(folder: Path) -> list[str]:
    """The files that the index names, or the only one that is there."""
    index = folder / checkpoint.INDEX
    if index.is_file():
        return sorted(set(checkpoint.read_json(index)["weight_map"].values()))
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _check_experts(source: Source, shapes: Mapping[str, tuple[list[int], str]]) -> None:
    text = source.text
    E, H, F = (text[n] for n in ("num_experts", "hidden_size", "moe_intermediate_size"))
    if H % BLOCK or F % BLOCK:
        raise ValueError(
            f"{source.folder / checkpoint.CONFIG}: NVFP4 needs hidden_size and "
            f"moe_intermediate_size in multiples of {BLOCK}, found {H} and {F}; this checkpoint "
            "has to stay in BF16"
        )
    for layer in range(text["num_hidden_layers"]):
        for leaf, shape in {GATE_UP: [E, 2 * F, H], DOWN: [E, H, F]}.items():
            name = f"model.decoder.layers.{layer}.experts.{leaf}"
            found, dtype = shapes.get(name, (None, None))
            if found != shape or dtype not in FLOATS:
                raise ValueError(
                    f"{source.folder}: {name} must be {shape} in BF16, F16 or F32, found "
                    f"{'nothing' if found is None else f'{found} in {dtype}'}; pass "
                    f"{checkpoint.SOURCE} or a checkpoint of its layout"
                )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises ValueError where what is done inside cannot write to DST."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"DST {folder} cannot be written ({error}): name a folder on a disk with room for the "
            "result, or free some and run again, which goes on where this run ended"
        ) from None


def to_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file as ModelOpt indents it, whole or not at all."""
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    draft.replace(path)
