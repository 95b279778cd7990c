"""The driver for five minutes, at CI's pace and without pause: nothing wrong, lost or left over."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from engine import ENVIRONMENT

pytestmark = [
    pytest.mark.engine, pytest.mark.timeout(3600),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM"),
]
PACED = "--minutes", "5", "--every", "5", "--pool", "3"
FULL = "--minutes", os.environ.get("LOAD_MINUTES", "5"), "--pool", "4"


@pytest.mark.parametrize(
    "options", [PACED, pytest.param(FULL, marks=pytest.mark.long)], ids=["paced", "full"]
)
def test_load_and_faults(tmp_path, options):
    kept = {name: value for name, value in os.environ.items()
            if name not in ENVIRONMENT or "OMP" in name}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "run.py", *options],
        capture_output=True, text=True, env=kept, cwd=tmp_path,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "left over at rest: no request, no slot, no KV block" in done.stdout
