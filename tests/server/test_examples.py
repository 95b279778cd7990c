"""The scripts in examples/ run as a user starts them and print what they are about."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(user_environment, tmp_path):
    """Runs a script somewhere else; its output's lines."""

    def start(script, *arguments):
        done = subprocess.run(
            [sys.executable, EXAMPLES / script, *arguments], capture_output=True, text=True,
            timeout=540, env=user_environment, cwd=tmp_path, start_new_session=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    return start


SCRIPTS = set(EXAMPLES.glob("*.py")) - {EXAMPLES / "benchmark.py"}  # a tool: test_benchmark.py


@pytest.mark.parametrize("script", sorted(SCRIPTS), ids=lambda path: path.name)
def test_length(script):
    assert len(script.read_text().splitlines()) < 60


@pytest.mark.long
def test_offline_generate(run):
    printed = [line for line in run("offline_generate.py") if line.endswith(", stop)")]
    assert len(printed) == 2 and printed[0].startswith("'")


def test_offline_chat(run):
    printed = run("offline_chat.py")
    assert printed.count("What is 27 + 38? -> 65") == 2
    assert any(line.startswith("(thought) ") for line in printed)


@pytest.mark.parametrize("offline", [False, pytest.param(True, marks=pytest.mark.long)])
def test_infill(run, server, offline):
    """Offline, a text longer than a canvas too; and through a server, gap after gap."""
    printed = run("infill.py", *([] if offline else ["--url", server.url]))
    code = "\n".join(printed)
    filled = [line for line in printed if "filled with" in line]
    assert len(filled) == 2
    for text in ("    return ", "def volume(radius: float, height: float) -> float:",
                 " * height", "    print(volume(radius=2.0, height=3.0))"):
        assert text in code


@pytest.mark.long
def test_evaluate_eyes(run):
    printed = run("miniature/evaluate_eyes.py", "--n", "8")
    assert json.loads(printed[-1])["all"] > 0.8


def test_agent(run, server):
    assert run("agent.py", "--url", server.url) == [
        "get_weather({'city': 'Paris'}) -> sunny, 21 degrees",
        "The weather in Paris: sunny, 21 degrees.",
        "add({'a': 123, 'b': 456}) -> 579",
        "The sum is 579.",
    ]


def test_stream(run, server, unjoined):
    """Each canvas's text is printed with the time at which it came."""

    def pieces():
        printed = [line.partition(" s] ") for line in run("stream.py", "--url", server.url)]
        assert "".join(text for _, _, text in printed).split() == [f"{i:03}" for i in range(1, 171)]
        assert all(float(time.removeprefix("[")) > 0 for time, _, _ in printed)
        return len(printed)

    unjoined(pieces, 3)


@pytest.mark.parametrize("script", ["image_chat.py", "video_chat.py"])
def test_pictures(run, server, script):
    printed = run(script, "--url", server.url)
    tokens = int(printed[0].split()[0])
    assert tokens > 63 and " -> " in "".join(printed)
