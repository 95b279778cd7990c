"""Who may import whom, and what importing costs.  Each case is a fresh interpreter."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from engine import ENVIRONMENT

ROOT = Path(__file__).parent.parent
PACKAGES = [ROOT / "diffusiongemma_vllm", ROOT / "kernels"]
LONGEST = 400


def python(code):
    """Run ``code``; the plugin is installed, the tests' variables are not set."""
    clean = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOADED = "import sys; print(sorted({'torch', 'vllm', 'triton', 'transformers'} & set(sys.modules)))"


def test_importing_the_package_is_free():
    assert python(f"import diffusiongemma_vllm; {LOADED}") == "[]"


@pytest.mark.parametrize("module", ["config", "request", "checkpoint", "cpu", "model.weights"])
def test_what_needs_no_torch_imports_none(module):
    """``model/__init__.py`` and ``model/weights.py`` are the standard library's alone."""
    assert python(f"import diffusiongemma_vllm.{module}; {LOADED}") == "[]"


def test_the_platform_entry_point_is_free_and_names_no_platform():
    code = "import diffusiongemma_vllm as d; assert d.prepare_platform() is None; " + LOADED
    assert python(code) == "[]"


BLOCK = "import sys; sys.modules['vllm'] = None; "


def test_the_kernels_import_without_vllm():
    python(BLOCK + "import diffusiongemma_kernels as k; assert all(map(k.__dict__.get, k.__all__))")


def test_the_core_imports_without_vllm():
    names = ("state", "inputs", "denoise.step", "denoise.rows", "denoise.noise", "parsers.grammar")
    python(BLOCK + "; ".join(f"import diffusiongemma_vllm.{name}" for name in names))


def test_kernels_is_not_ours():
    """Hugging Face's package has that name; at most a bare folder, which any package beats."""
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"
    origin = python(code)
    assert origin == "None" or not Path(origin).is_relative_to(ROOT / "kernels")
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_tests_are_not_a_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_registration_loads_no_model_code():
    """The architecture is a lazy string until an engine is made; registering twice is once.

    Then only our model is looked at in this process.
    """
    code = """
import sys
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.models import registry
from vllm.sampling_params import SamplingParams
models = registry.ModelRegistry.models
lazy = models["DiffusionGemmaForBlockDiffusion"]
print(lazy.module_name, lazy.class_name)
parts = ("diffusiongemma_vllm." + name for name in ("model", "runner", "denoise", "state"))
print([part for part in (*parts, "diffusiongemma_kernels") if part in sys.modules])
patched = EngineArgs.create_engine_config, SamplingParams._validate_diffusion
import diffusiongemma_vllm
diffusiongemma_vllm.register()
print(patched == (EngineArgs.create_engine_config, SamplingParams._validate_diffusion))
registry._run_in_subprocess = lambda function: "in another process"
registry._LazyRegisteredModel._load_modelinfo_from_cache = lambda self, module_hash: None
registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda self, info, module_hash: None
print(models["LlamaForCausalLM"].inspect_model_cls())
diffusiongemma_vllm.cpu.enable()
print(lazy.inspect_model_cls().supports_multimodal)
"""
    name, loaded, same, other, ours = python(code).splitlines()[-5:]
    assert name == "diffusiongemma_vllm.runner.entry DiffusionGemmaForBlockDiffusion"
    assert loaded == "[]"
    assert same == "True"
    assert (other, ours) == ("in another process", "True")


def test_without_the_plugin_nothing_is_patched():
    code = """
import os
os.environ["VLLM_PLUGINS"] = ""
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.engine.arg_utils import EngineArgs
print(hasattr(EngineArgs.create_engine_config, "_diffusiongemma_patch"))
"""
    assert python(code).splitlines()[-1] == "False"


def sources():
    return [path for folder in PACKAGES for path in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_short(path):
    lines = path.read_text().count("\n")
    assert lines <= LONGEST, f"{lines} lines: find the missing noun"


def test_imports_point_one_way():
    """The contracts in pyproject.toml, by import-linter."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if "importlinter" not in config["tool"]:
        pytest.skip("pyproject.toml has no [tool.importlinter]")
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed: pip install -e '.[dev]'")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


def test_no_helper_hides_another():
    """Helpers of tests and examples are found by name on one path: each name is one file's."""
    files = [
        path for folder in ("tests", "examples") for path in (ROOT / folder).rglob("*.py")
        if not path.stem.startswith(("test_", "__")) and path.stem != "conftest"
    ]  # fmt: skip
    names = Counter(path.stem for path in files)
    assert [name for name, count in names.items() if count > 1] == []
    site = Path(sysconfig.get_path("purelib"))
    taken = {path.stem for path in site.iterdir()} | sys.stdlib_module_names
    assert sorted(taken & set(names)) == []
