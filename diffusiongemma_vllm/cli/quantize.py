"""BF16 checkpoint in, NVFP4 checkpoint in NVIDIA's layout out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from diffusiongemma_vllm import checkpoint
from diffusiongemma_vllm.quantize import calibration, convert, source, verify
from diffusiongemma_vllm.quantize.experts import InputScales

NONE = "none"


@dataclass(frozen=True)
class Options:
    """calibration: "datasets", "none", or a .jsonl file."""

    src: str
    dst: Path
    calibration: str
    samples: int
    device: str


def quantize(options: Options) -> int:
    """Calibrate, convert, verify.  Prints the error of every layer.

    Raises:
        ValueError: for an option or a file that cannot be used, and where the result is wrong.
    """
    _check(options)
    warnings.filterwarnings("ignore", module=r"modelopt\.")
    console = Console(highlight=False)
    found = source.read(source.find(options.src))
    convert.prepare(found, options.dst)
    inputs = InputScales(None if options.calibration == NONE else _amax(found, options))
    convert.convert(found, options.dst, inputs, options.device)
    errors = verify.verify(found, options.dst, options.device)
    table = Table("layer", "gate, up", "down", title="error, relative to the weights' norm")
    for error in errors:
        table.add_row(str(error.layer), f"{error.gate_up:.4f}", f"{error.down:.4f}")
    console.print(table)
    before, after = (_size(folder) for folder in (found.folder, options.dst))
    console.print(f"{options.dst}: {after / 1e9:.3f} GB, was {before / 1e9:.3f} GB")
    return 0


def _check(options: Options) -> None:
    if find_spec("modelopt") is None:
        raise ValueError(
            "quantize needs NVIDIA's ModelOpt: pip install 'diffusiongemma-vllm[quantize]'"
        )
    if options.samples < 1:
        raise ValueError(f"--samples must be 1 or more, got {options.samples}")
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {options.device} cannot be used ({error}); use cpu") from None


def _amax(found: source.Source, options: Options) -> dict[str, float]:
    """The calibration's result, kept beside the weights for the next run and for the reader."""
    path = options.dst / convert.RECORD
    asked: dict[str, Any] = {
        "source": str(found.folder.resolve()), "calibration": options.calibration,
        "samples": options.samples, "recipe": calibration.RECIPE,
        "read": [source.version(found.folder / name) for name in sorted(found.files)],
    }
    if Path(options.calibration).is_file():
        asked["read"].append(source.version(Path(options.calibration)))
    if path.is_file():
        kept = checkpoint.read_json(path)
        if {name: kept.get(name) for name in asked} == asked:
            return dict(kept["input_amax"])
    encode = calibration.encoder(found.folder)
    prompts = [encode(text) for text in calibration.texts(options.calibration, options.samples)]
    amax = calibration.calibrate(found.folder, prompts, options.device)
    with source.writing(options.dst):
        source.to_json(path, asked | {"input_amax": amax})
    return amax


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
