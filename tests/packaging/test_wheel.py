"""What pip installs: the wheel's content, and the README's first example in a fresh environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("diffusiongemma_vllm", "kernels/diffusiongemma_kernels")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A clean checkout's sdist, and the wheel that is built from that sdist."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked("."):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def tracked(folder):
    """Files of the checkout that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder], cwd=ROOT,
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def test_the_wheel_holds_both_packages_and_nothing_else(built):
    """Every file of both, whatever its kind: a pattern of package-data that misses one is found."""
    with zipfile.ZipFile(built[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {name.removeprefix("kernels/") for folder in OURS for name in tracked(folder)}
    assert held == wanted
    for name in ("diffusiongemma_vllm/py.typed", "diffusiongemma_kernels/py.typed",
                 "diffusiongemma_vllm/miniature/model.safetensors",
                 "diffusiongemma_vllm/miniature/chat_template.jinja",
                 "diffusiongemma_vllm/evaluation/data/heldout/test.jsonl"):
        assert name in held


def test_metadata(built):
    with zipfile.ZipFile(built[1]) as wheel:
        (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        points = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = wheel.read(f"{info}/METADATA").decode()
        assert wheel.read(f"{info}/licenses/LICENSE")
    for line in ("[vllm.general_plugins]", "[vllm.platform_plugins]", "[console_scripts]",
                 "diffusiongemma = diffusiongemma_vllm:register"):
        assert line in points
    for extra in ("cuda", "quantize", "eval", "dev"):
        assert f"Provides-Extra: {extra}" in metadata
    assert "# diffusiongemma-vllm" in metadata  # the README


def test_the_sdist_builds_what_ships(built):
    with tarfile.open(built[0]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {name for folder in OURS for name in tracked(folder)}
    assert wanted | {"LICENSE", "README.md", "pyproject.toml"} <= held


@pytest.fixture(scope="module")
def fresh(built):
    """A virtual environment with what the lock installed, as links, and our wheel."""
    with tempfile.TemporaryDirectory(prefix="fresh-") as folder:
        yield furnish(Path(folder), built[1])


def furnish(folder, wheel):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    ours, theirs = Path(sysconfig.get_path("purelib")), purelib(python)
    for installed in ours.iterdir():
        if "diffusiongemma" not in installed.name:
            (theirs / installed.name).symlink_to(installed)
    assert not list(theirs.glob("*diffusiongemma*"))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps",
         "--no-index", wheel], check=True,
    )
    return folder


def purelib(python):
    said = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )
    return Path(said.stdout.strip())


@pytest.fixture(scope="module")
def run(fresh, tmp_path_factory):
    """Runs a command of that environment, anywhere but in the checkout; what it printed."""
    from engine import ENVIRONMENT

    kept = {name: value for name, value in os.environ.items()
            if name not in ENVIRONMENT and name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    kept |= {name: ENVIRONMENT[name] for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND")}
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def start(*command):
        done = subprocess.run(
            [fresh / "bin" / command[0], *command[1:]], capture_output=True, text=True,
            timeout=540, env=kept, cwd=elsewhere,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return start


def test_it_is_the_wheel_that_runs(run, fresh):
    assert str(fresh) in run("diffusiongemma-vllm", "miniature")
    found = json.loads(run("python", "-c", (
        "import importlib.util as u, json; "
        "print(json.dumps([u.find_spec(n).origin if u.find_spec(n) else None for n in "
        "('diffusiongemma_vllm', 'diffusiongemma_kernels', 'kernels', 'tests')]))"
    )))
    assert all(str(fresh) in path for path in found[:2]) and found[2:] == [None, None]


@pytest.mark.engine
def test_the_first_example_of_the_readme(run):
    """`make demo` there is `diffusiongemma-vllm demo`: it serves, asks three questions, stops.

    vllm serve is found to use our plugin by what only it can do: answer by the miniature.
    """
    said = run("diffusiongemma-vllm", "demo")
    assert "What is 27 + 38?" in said and "\n65\n" in said
    assert "(thought)" in said
    assert "001 002 003" in said
    assert re.search(r'get_weather\(\{"city": "[Pp]aris"\}\)', said)
    costs = re.findall(
        r"(\d+) tokens, (\d+) canvas\(es\), ([\d.]+) denoise steps a canvas, "
        r"([\d.]+) tokens a forward, [\d.]+ s",
        " ".join(said.split()),  # rich breaks lines at 80 columns
    )
    assert [int(canvases) for _, canvases, *_ in costs] == [1, 3, 1], said
    assert said.rstrip().endswith("stopped.")
