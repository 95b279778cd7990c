"""The commands, started as a user starts them; `demo` runs in tests/packaging."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

BIN = Path(sys.executable).parent


@pytest.fixture
def run(user_environment, tmp_path):
    def start(*command):
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]], capture_output=True, text=True, timeout=540,
            env=user_environment, cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return start


def test_miniature(run):
    folder = Path(run("diffusiongemma-vllm", "miniature").strip())
    assert (folder / "config.json").exists() and (folder / "model.safetensors").exists()


def test_doctor(run):
    said = run("diffusiongemma-vllm", "doctor")
    for word in ("vllm", "torch", "triton", "transformers"):
        assert word in said.lower()


def test_vllm_version(run):
    assert run("vllm", "--version").strip().splitlines()[-1].startswith("0.32.")


def test_an_unknown_command_names_those_there_are(run):
    with pytest.raises(AssertionError, match="demo.*doctor.*miniature"):
        run("diffusiongemma-vllm", "nonsense")
