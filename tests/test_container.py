"""The container's files in examples/: what a build and a cluster would read of them.

There is no Docker here: its RUN lines run in a shell, against a copy of what it copies.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diffusiongemma_vllm.cli.server import CARD_FLAGS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "container"
MODEL = "nvidia/diffusiongemma-26B-A4B-IT-NVFP4"


@pytest.fixture(scope="module")
def lines():
    """The Dockerfile's instructions: [name, rest]"""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.M)
    joined = text.replace("\\\n", "")
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


def every(lines, name):
    return [rest for found, rest in lines if found == name]


def test_the_image_is_vllms_at_the_supported_version(lines):
    from diffusiongemma_vllm.compat import SUPPORTED

    assert lines[0][0] == "FROM" and every(lines, "FROM") == [f"vllm/vllm-openai:v{SUPPORTED}.0"]
    known = {"FROM", "COPY", "RUN", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in lines} <= known


def test_it_serves_with_the_model_cards_flags(lines):
    (entry,), (command,) = every(lines, "ENTRYPOINT"), every(lines, "CMD")
    assert json.loads(entry) == ["vllm", "serve"]
    assert json.loads(command) == [MODEL, *CARD_FLAGS]
    (health,) = every(lines, "HEALTHCHECK")
    assert json.loads(health[health.index("[") :])[-1].endswith(":8000/health")
    assert every(lines, "EXPOSE") == ["8000"]


UV = """#!/bin/sh
[ "$1 $2 $3 $4" = "pip install --system --no-deps" ] || exit 64
exec {python} -m pip install -q --no-deps --no-build-isolation --ignore-installed \\
    --prefix {prefix} "$5"
"""


def test_what_it_copies_installs(lines, tmp_path):
    """Into a prefix of its own; the command runs and the package's files are there."""
    image = tmp_path / "image"
    for copy in every(lines, "COPY"):
        *sources, target = copy.split()
        place = image / target.lstrip("/")
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns(
                    "__pycache__", "*.egg-info", "build"
                ))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)
    binaries, prefix = tmp_path / "bin", tmp_path / "prefix"
    binaries.mkdir()
    (binaries / "uv").write_text(UV.format(python=sys.executable, prefix=prefix))
    (binaries / "uv").chmod(0o755)
    site = prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {
        "PATH": f"{binaries}:{prefix / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path),
        "PYTHONPATH": str(site / "site-packages"),
    }
    for run in every(lines, "RUN"):
        done = subprocess.run(
            ["/bin/sh", "-eu", "-c", run.replace("/src/", f"{image}/src/")], env=environment,
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )
        assert done.returncode == 0, done.stderr
    package = site / "site-packages" / "diffusiongemma_vllm"
    assert done.stdout.strip() == str(package / "miniature")
    for name in ("miniature/model.safetensors", "watch/static/index.html", "py.typed"):
        assert (package / name).is_file()
    assert not any((image / "src").iterdir())


@pytest.fixture(scope="module")
def objects():
    found = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    return {one["kind"]: one for one in found}


def test_the_clusters_objects_fit_together(objects):
    assert {*objects} == {"PersistentVolumeClaim", "Deployment", "Service"}
    assert {one["apiVersion"] for one in objects.values()} == {"v1", "apps/v1"}
    deployment, service = objects["Deployment"]["spec"], objects["Service"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == service["selector"]
    pod = deployment["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {*volumes}
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    (port,) = container["ports"]
    assert service["ports"][0]["targetPort"] == port["name"]


def test_the_clusters_container(objects):
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == [MODEL, *CARD_FLAGS]
    assert all(isinstance(one, str) for one in container["args"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    notes = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(container["ports"][0]["containerPort"])
    assert all(isinstance(one, str) for one in notes.values())


def test_the_dashboard():
    board = json.loads((FOLDER / "grafana.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert target["datasource"]["uid"] == "${datasource}"
