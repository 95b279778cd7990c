"""`diffusiongemma-vllm eval miniature`: two servers and transformers, one table."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from engine import ENVIRONMENT

pytestmark = [pytest.mark.engine, pytest.mark.long]
COMMAND = Path(sys.executable).parent / "diffusiongemma-vllm"


def test_one_command(tmp_path, monkeypatch):
    """Eleven chats, one of each task; a second call asks nothing again."""
    for name in ENVIRONMENT:
        if "OMP" not in name:
            monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        [COMMAND, "eval", "miniature", "--limit", "4", "--out", tmp_path / "out"],
        capture_output=True, text=True, timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = (tmp_path / "out/table.md").read_text()
    assert table.strip() in done.stdout
    head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()
                      if line.startswith("|")]
    assert head == ["task", "questions", "transformers", "BF16", "NVFP4", "BF16 - transformers",
                    "NVFP4 - BF16"]
    assert rows[-1][:2] == ["all", "4"]
    for cell in rows[-1][2:5]:
        assert float(cell.split()[0]) >= 75
    for cell in rows[-1][5:]:
        assert re.fullmatch(r"[+-]\d+\.\d \([+-]\d+\.\d to [+-]\d+\.\d\)", cell), cell
    assert "lm-eval 0.4" in table and "transformers" in table
    for name in ("BF16", "NVFP4"):
        assert len((tmp_path / f"out/{name}.answers.jsonl").read_text().splitlines()) == 4
