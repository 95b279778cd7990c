"""The driver for five minutes (or LOAD_MINUTES): nothing wrong, nothing lost, nothing left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine import ENVIRONMENT

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(3600)]
MINUTES = os.environ.get("LOAD_MINUTES", "5")


def test_load_and_faults(tmp_path):
    kept = {name: value for name, value in os.environ.items()
            if name not in ENVIRONMENT or "OMP" in name}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "run.py", "--minutes", MINUTES, "--pool", "4"],
        capture_output=True, text=True, env=kept, cwd=tmp_path,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "left over at rest: no request, no slot, no KV block" in done.stdout
