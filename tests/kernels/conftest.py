"""Without a GPU, Triton's interpreter runs the kernels.

It has to be chosen before Triton is imported, so this file does it for the whole process, and
takes the variable back at once: nothing that the process starts should inherit it.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = not torch.cuda.is_available()
PACKAGE = importlib.util.find_spec("diffusiongemma_kernels").submodule_search_locations[0]
KERNELS = [
    f"diffusiongemma_kernels.{path.parent.name}._kernel"
    for path in sorted(Path(PACKAGE).glob("*/_kernel.py"))
]

before = os.environ.get("TRITON_INTERPRET")
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
early = [name for name in KERNELS if name in sys.modules]  # and again: some import others
for name in early + KERNELS:
    if name in sys.modules:  # imported by another test, so compiled: decorate it again
        importlib.reload(sys.modules[name])
    else:
        importlib.import_module(name)
if INTERPRETED:
    importlib.import_module("triton.experimental.gluon")  # a launch imports it, and it checks
if INTERPRETED and before is None:
    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: a GPU, or a CPU under the interpreter."""
    import triton.language as tl

    if INTERPRETED and type(tl.max).__name__ != "InterpretedFunction":
        pytest.skip("Triton was imported before tests/kernels could choose its interpreter")
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def hopper_gpu() -> torch.device:
    from diffusiongemma_kernels import target

    device = torch.device("cuda")
    if target.of(device).capability[0] != 9:
        pytest.skip("needs a Hopper GPU")
    return device


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED:
        for item in items:
            if "tests/kernels" in item.path.as_posix() and item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
