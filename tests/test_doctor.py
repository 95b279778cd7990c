"""``diffusiongemma-vllm doctor`` on machines with GPUs that are not here."""

from types import SimpleNamespace

import pytest
import torch

from diffusiongemma_vllm.cli import doctor


@pytest.fixture
def found(monkeypatch):
    def found(*capabilities):
        """What it says of a machine with these GPUs."""
        gpus = [
            SimpleNamespace(name="A GPU", major=major, minor=minor, total_memory=80 * 2**30)
            for major, minor in capabilities
        ]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
        return doctor._device()

    return found


@pytest.mark.parametrize(("capability", "attention", "nvfp4"), [
    ((8, 0), "Triton", "Triton"),
    ((9, 0), "Gluon kernels for heads of 256 and 512 in BF16, else our Triton", "Gluon"),
    ((10, 0), "Triton", "Triton kernels, as FP4 products where the checkpoint has input scales"),
    ((12, 0), "Triton", "FP4 products"),
])
def test_it_says_which_kernels_a_gpu_runs(found, capability, attention, nvfp4):
    said = dict(found(capability))
    assert said["device 0"] == f"A GPU, sm_{capability[0]}{capability[1]}, 80 GiB"
    for part, kernels in (("attention", attention), ("experts in NVFP4", nvfp4)):
        assert kernels in said[part] and ("Gluon" in said[part]) == ("Gluon" in kernels)
        assert ("FP4 products" in said[part]) == ("FP4 products" in kernels)
    assert said["experts in BF16"] == said["KV write, sampler"] == "our Triton kernels"


def test_each_gpu_is_told_by_itself(found):
    said = found((8, 0), (9, 0), (7, 5))
    at = [part for part, _ in said].index
    first, second, third = said[at("device 0") : at("device 1")], said[at("device 1") :], said[-2]
    assert dict(first)["experts in NVFP4"] == "our Triton kernels"
    assert dict(second)["experts in NVFP4"] == "our Gluon kernels"
    assert third == ("its kernels", "none: sm_80 or newer is needed")


def test_without_a_gpu(found):
    assert "no CUDA device" in dict(found())["device"]
