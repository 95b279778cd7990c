"""A random checkpoint in three files, and what ``diffusiongemma-vllm quantize`` makes of it."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def split(checkpoint, tmp_path_factory):
    """``checkpoint`` in three files with an index.  Read only."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("split") / "src")
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, where = sorted(tensors), {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, folder / file)
        where |= dict.fromkeys(names[i::3], file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def result(split, tmp_path_factory):
    """Quantised without a calibration.  Read only."""
    from diffusiongemma_vllm.cli.main import main

    folder = tmp_path_factory.mktemp("result") / "dst"
    assert main(["quantize", str(split), str(folder), "--calibration", "none"]) == 0
    return folder
