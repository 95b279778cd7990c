"""Every command in the documentation is run somewhere, or is known to need what is not here.

A command that is new or changed fails until ``COMMANDS`` says where it runs.
"""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels/README.md",
    ROOT / "examples/miniature/README.md", *sorted((ROOT / "docs").glob("**/*.md")),
]
WORDS = ("make", "pip", "python", "vllm", "diffusiongemma-vllm", "hf", "export", "apt", "git",
         ".", "curl")


@dataclass(frozen=True)
class RunBy:
    """A test that runs it: path and function."""

    path: str
    function: str


@dataclass(frozen=True)
class Needs:
    """Why it is not run: what it needs."""

    what: str


class Here:
    """This test runs it, with the miniature in place of the real checkpoint."""


class CI:
    """.ci/run runs it, by the Makefile's own targets."""


SERVED = RunBy("tests/server/conftest.py", "server")
COMMANDS = {
    "make demo": RunBy("tests/packaging/test_wheel.py", "test_the_first_example_of_the_readme"),
    "make test": CI(),
    "make quick": CI(),
    "make long": Needs("more time than CI has"),
    "make setup": CI(),
    "make lint": CI(),
    "export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu": Needs("network"),
    ". .venv/bin/activate": Here(),
    "vllm serve $(diffusiongemma-vllm miniature)": SERVED,
    "vllm serve nvidia/diffusiongemma-26B-A4B-IT-NVFP4": Needs("a GPU and the checkpoint"),
    "vllm serve ... --tensor-parallel-size 2": RunBy(
        "tests/engine/test_ranks.py", "test_by_tensor"),
    "vllm serve ... --tensor-parallel-size 2 --enable-expert-parallel": RunBy(
        "tests/engine/test_ranks.py", "test_by_experts"),
    "vllm serve ... --enable-lora": RunBy("tests/server/test_lora.py", ""),
    "curl http://127.0.0.1:8000/v1/chat/completions": Needs("a GPU and the checkpoint"),
    "diffusiongemma-vllm doctor": Here(),
    "diffusiongemma-vllm watch": RunBy("tests/server/test_watch.py", "address"),
    "diffusiongemma-vllm chat": RunBy("tests/server/test_drafts.py", "test_the_terminal_chat"),
    "diffusiongemma-vllm quantize google/": RunBy(
        "tests/quantize/test_miniature.py", "quantised"),
    "diffusiongemma-vllm eval miniature": RunBy(
        "tests/evaluation/test_engine.py", "test_one_command"),
    "diffusiongemma-vllm eval": RunBy(
        "tests/evaluation/test_seven.py", "test_right_and_wrong_answers"),
    "hf download": Needs("network"),
    "python -m nltk.downloader": Needs("network"),
    "pip check": Here(),
    "pip install '.[cuda]'": Needs("a GPU"),
    "pip install '.[quantize]'": Needs("network; the lock holds the same"),
    "pip install '.[eval]'": Needs("network; the lock holds the same"),
    "pip install datasets": Needs("network; the lock holds the same"),
    "python examples/miniature/train.py": Needs("a GPU"),
    "python examples/miniature/train_eyes.py": Needs("a GPU"),
    "python examples/miniature/evaluate.py": Here(),
    "python examples/miniature/evaluate_eyes.py": RunBy(
        "tests/server/test_examples.py", "test_evaluate_eyes"),
    "python examples/benchmark.py": Needs("a GPU"),
    "python kernels/bench/run.py": Needs("a GPU"),
    "python -m pytest tests/kernels": CI(),
    "python tests/load/run.py": RunBy("tests/load/test_load.py", "test_load_and_faults"),
}


def commands(text):
    """The commands of a page: lines of code blocks, and code within sentences."""
    found = []
    for block in re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", text, re.M) + re.findall(
        r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.M | re.S
    ):
        whole = re.sub(r"\\\n", " ", block)
        found += [" ".join(line.split()) for line in whole.splitlines() if line.strip()]
    found += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", _prose(text))]
    return [line.partition(" #")[0].strip() for line in found if _is_command(line)]


def _prose(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def _is_command(line):
    word, _, rest = line.partition(" ")
    return word in WORDS and bool(rest) and line != "vllm serve"


def where(command):
    """The entry of the longest beginning that is known."""
    known = [start for start in COMMANDS if command.startswith(start)]
    return COMMANDS[max(known, key=len)] if known else None


ALL = [(page, command) for page in PAGES if page.exists()
       for command in commands(page.read_text(encoding="utf-8"))]


def test_blocks_and_sentences_are_read():
    text = "Do `make x` or `x`:\n\n    make a \\\n      b  # why\n    L(1)\n\n```sh\npip c\n```\n"
    assert commands(text) == ["make a b", "pip c", "make x"]
    assert len(ALL) > 15


@pytest.mark.parametrize(
    "page, command", ALL, ids=[f"{page.name}: {command[:60]}" for page, command in ALL]
)
def test_every_command_has_a_place(page, command):
    place = where(command)
    assert place is not None, f"{page.name} has `{command}`: say in COMMANDS where it is run"
    if isinstance(place, RunBy):
        text = (ROOT / place.path).read_text(encoding="utf-8")
        assert f"def {place.function}(" in text or not place.function, place


def test_no_place_is_left_over():
    """An entry that no page has any more is deleted."""
    used = {max((s for s in COMMANDS if c.startswith(s)), key=len) for _, c in ALL if where(c)}
    assert used == set(COMMANDS)


def test_the_servers_of_the_readme_are_the_ones_of_the_tests():
    """Flags word for word, since the tests start their servers with CARD_FLAGS."""
    from diffusiongemma_vllm.cli.server import CARD_FLAGS

    def read(flags):
        return [flag.replace(" ", "") for flag in flags]

    served = [shlex.split(command.replace("$(diffusiongemma-vllm miniature)", "MODEL"))
              for _, command in ALL if command.startswith("vllm serve") and "..." not in command]
    assert len(served) >= 2
    for words in served:
        assert read(words[3:]) == read(CARD_FLAGS), words


def test_make_targets_are_in_the_makefile():
    known = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for _, command in ALL:
        if command.startswith("make "):
            assert command.split()[1] in known, command
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.M)


@pytest.mark.parametrize("command", [
    ". .venv/bin/activate && diffusiongemma-vllm doctor",
    ". .venv/bin/activate && test -f $(diffusiongemma-vllm miniature)/chat_template.jinja",
    ". .venv/bin/activate && diffusiongemma-vllm eval --help",
    ". .venv/bin/activate && python examples/miniature/evaluate.py --n 2",
])
def test_cheap_ones(command):
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_pip_check_says_what_the_readme_says():
    """Packages that the README names as missing, and no other."""
    done = subprocess.run(
        [".venv/bin/python", "-m", "pip", "check"], cwd=ROOT, capture_output=True, text=True
    )
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for line in done.stdout.splitlines():
        missing = re.search(r" requires ([\w-]+), which is not installed", line)
        named = missing.group(1) if missing else line.split()[0]
        assert named in readme, line


LINKS = [(page, link) for page in PAGES for link in re.findall(
    r"\]\(([^)#:]+)\)|<img src=\"([^\":]+)\"", page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "page, link", [(page, "".join(link)) for page, link in LINKS],
    ids=[f"{page.name}: {''.join(link)}" for page, link in LINKS],
)
def test_what_a_page_links_to_is_here(page, link):
    assert (page.parent / link).exists()
