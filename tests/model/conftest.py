"""Our model and transformers', of one random checkpoint whose layer scalars all differ."""

import pytest
import torch
from modules import edit_tensors, load, reference


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    import shutil

    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("model") / "differing")

    def spread(tensors):
        for i, name in enumerate(sorted(n for n in tensors if n.endswith("layer_scalar"))):
            tensors[name].fill_(0.5 + 0.1 * i)

    edit_tensors(folder, spread)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return load(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return reference(folder)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture
def rows():
    """[T, H] residual stream, more rows than a tile of experts."""
    return torch.randn(70, 64, generator=torch.Generator().manual_seed(0))
