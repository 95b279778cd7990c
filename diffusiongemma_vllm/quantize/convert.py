"""BF16 to NVFP4, file by file: memory holds one, and an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from diffusiongemma_vllm import checkpoint
from diffusiongemma_vllm.quantize.description import hf_quant_config, quantization_config
from diffusiongemma_vllm.quantize.experts import InputScales, rounded
from diffusiongemma_vllm.quantize.source import FUSED, Source, to_json, version, writing

MARK = "diffusiongemma_quantize"  # metadata of a finished file
ALONE = "model.safetensors"  # the one name that transformers opens without an index
RECORD = "quantize.json"
HF_QUANT_CONFIG = "hf_quant_config.json"
COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*")


def prepare(source: Source, folder: Path) -> None:
    """Make the result's folder.

    Raises:
        ValueError: where it is the source, cannot be made, or holds weights that are not this
            source's.
    """
    try:
        same = folder.exists() and folder.samefile(source.folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"DST {folder} is no folder and cannot be made one ({error.strerror}); name another"
        ) from None
    if same:
        raise ValueError(f"DST {folder} is SRC itself; name another folder")
    strange = sorted(x.name for x in folder.glob("*.safetensors") if x.name not in source.files)
    if strange:
        raise ValueError(
            f"DST {folder} holds {strange[0]}, which this run would not write; name an empty folder"
        )


def convert(source: Source, folder: Path, inputs: InputScales, device: str = "cpu") -> None:
    """Write the weights, then the index, and config.json last: a half-made result does not open.

    What DST holds already is kept where it was made of the same source and scales.

    Raises:
        ValueError: where DST cannot be written, and as ``rounded`` does.
    """
    total = sum(map(len, source.files.values()))
    where: dict[str, str] = {}
    size = 0
    with tqdm(total=total, unit="tensor", desc="quantising") as bar:
        for name, tensors in source.files.items():
            path, key = folder / name, _key(source, name, inputs)
            if _done(path, key):
                bar.update(len(tensors))
            else:
                (folder / checkpoint.CONFIG).unlink(missing_ok=True)  # an earlier result's
                result = dict(_converted(source.folder / name, inputs, device, bar))
                with writing(folder):
                    draft = folder / f".{name}.part"
                    save_file(result, draft, metadata={"format": "pt", MARK: key})
                    shutil.copymode(source.folder / name, draft)  # safetensors makes it private
                    draft.replace(path)
                del result
            for tensor, nbytes in _sizes(path):
                where[tensor] = name
                size += nbytes
    with writing(folder):
        if list(source.files) != [ALONE]:
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
            to_json(folder / checkpoint.INDEX, index)
        _describe(source, folder, calibrated=inputs.amax is not None)


def _converted(
    path: Path, inputs: InputScales, device: str, bar: Any
) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, "pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            if FUSED.fullmatch(name):
                yield from rounded(name, tensor.to(device), inputs)
            else:
                yield name, tensor
            bar.update()


def _key(source: Source, name: str, inputs: InputScales) -> str:
    """Names what a file of the result was made of."""
    amax = inputs.amax or {}
    used = {tensor: amax.get(tensor) for tensor in source.files[name] if FUSED.fullmatch(tensor)}
    said = [name, *version(source.folder / name), hf_quant_config(calibrated=True), used]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _done(path: Path, key: str) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(MARK) == key
    except (OSError, SafetensorError):
        return False


def _sizes(path: Path) -> Iterator[tuple[str, int]]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, end - begin


def _describe(source: Source, folder: Path, *, calibrated: bool) -> None:
    skip = {checkpoint.CONFIG, checkpoint.INDEX, HF_QUANT_CONFIG, RECORD}
    for pattern in COPIED:
        for path in source.folder.glob(pattern):
            if path.is_file() and path.name not in skip:
                shutil.copyfile(path, folder / path.name)
    to_json(folder / HF_QUANT_CONFIG, hf_quant_config(calibrated=calibrated))
    config = source.config | {"quantization_config": quantization_config(calibrated=calibrated)}
    to_json(folder / checkpoint.CONFIG, config)
