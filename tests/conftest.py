"""What every test may count on.  The variables have to be set before vLLM is imported."""

import gc
import os

import pytest
import torch
from engine import ENVIRONMENT

os.environ.update(ENVIRONMENT)
if torch.cuda.is_available():
    del os.environ["DIFFUSIONGEMMA_VLLM_INTERPRETER"]
else:
    # Read whenever a kernel is decorated, whichever test imports it first.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_xdist_make_scheduler(config, log):
    """Files stay together, and all files that ask the one server."""
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid):
            served = nodeid.startswith("tests/server/") and "offline" not in nodeid
            return "tests/server" if served else super()._split_scope(nodeid)

    return ByServer(config, log)


def pytest_collection_finish():
    """What has been imported is not looked at for garbage."""
    gc.freeze()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A random fp32 checkpoint of three layers, the last of them full.  Read only."""
    from random_checkpoint import build

    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    folder = tmp_path_factory.mktemp("checkpoint") / "random"
    return build(folder, num_hidden_layers=3, layer_types=kinds)


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy of ``checkpoint`` that a test may damage."""
    import shutil

    return shutil.copytree(checkpoint, tmp_path / "copy")
