"""The shared conformance suite, where it is checked out next to this repository."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT.parent / "shared" / "parsers"
PACKAGE = "diffusiongemma_vllm.parsers"
PAIR = [
    f"--tool-parser={PACKAGE}.tools:Gemma4ToolParser",
    f"--reasoning-parser={PACKAGE}.reasoning:Gemma4ReasoningParser",
]
SERVER = [f"--parser={PACKAGE}.parser:TurnParser"]

pytestmark = pytest.mark.skipif(
    not (SUITE / "run_cases.py").exists(), reason=f"no conformance suite in {SUITE}"
)


def run(arguments: list[str], out: Path, monkeypatch, capsys) -> tuple[dict, str]:
    """The suite as a command, in this process: it has imported vLLM already."""
    monkeypatch.setattr(sys, "argv", [
        "run_cases.py", f"--cases={SUITE / 'cases.json'}", "--jobs=1", f"--out={out}", *arguments
    ])
    try:
        runpy.run_path(str(SUITE / "run_cases.py"), run_name="__main__")
    except SystemExit as done:
        assert not done.code, capsys.readouterr().err[-3000:]
    return json.loads(out.read_text()), capsys.readouterr().out


@pytest.mark.parametrize(("parsers", "core_only"), [(PAIR, True), (SERVER, False)], ids=str)
def test_every_case_passes_in_every_chunking(parsers, core_only, tmp_path, monkeypatch, capsys):
    """vLLM's own composition of the pair sees no token ids in whole outputs: core cases only."""
    result, printed = run(parsers, tmp_path / "out.json", monkeypatch, capsys)
    wanted = "core" if core_only else "all"
    assert result["n_all"] > 200
    assert result[f"pass_{wanted}"] == result["n_core" if core_only else "n_all"], printed[-4000:]
    checks = re.findall(r"(?:JSON grammar|on prompts): (\d+)/(\d+)", printed)
    assert len(checks) == 2 and all(passed == of for passed, of in checks), printed[-2000:]
