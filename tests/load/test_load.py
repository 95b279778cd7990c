"""The driver for half a minute, or for five (or LOAD_MINUTES): nothing wrong, lost or left over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine import ENVIRONMENT

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]
LONG = pytest.param(os.environ.get("LOAD_MINUTES", "5"), "4", marks=pytest.mark.long)


@pytest.mark.parametrize(("minutes", "pool"), [("0.5", "1"), LONG])
def test_load_and_faults(tmp_path, minutes, pool):
    kept = {name: value for name, value in os.environ.items()
            if name not in ENVIRONMENT or "OMP" in name}
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "run.py", "--minutes", minutes, "--pool", pool],
        capture_output=True, text=True, env=kept, cwd=tmp_path,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "left over at rest: no request, no slot, no KV block" in done.stdout
