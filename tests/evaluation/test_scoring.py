"""What is read out of replies."""

import pytest

from diffusiongemma_vllm.evaluation import arithmetic, letters, programs


@pytest.mark.parametrize("reply, letter", [
    ("Answer: C", "C"),
    ("The answer is (B).", "B"),
    ("**Answer:** D", "D"),
    ("**Answer: A. gold**", "A"),
    ("Answer: $\\boxed{B}$", "B"),
    ("so \\boxed{\\text{(A)}}", "A"),
    ("Answer: A\n\nNo. Answer: E", "E"),
    ("D", "D"),
    ("(D).", "D"),
    ("Answer: \\(C\\)", "C"),
    ("Answer: \\[C\\]", "C"),
    ("Answer: \\[\\boxed{C}\\]", "C"),
    ("Answer: `C`", "C"),
    ('Answer: "C"', "C"),
    ("Answer: “C”", "C"),
    ("Answer: \\textbf{C}", "C"),
    ("$\\boxed{\\textbf{(C)}}$", "C"),
    ("$\\boxed{\\text{Option C}}$", "C"),
    ("Answer: Option C", "C"),
    ("The answer is option **C**.", "C"),
    ("Answer: C\nI hope this answer is A good one", "C"),
    ("The answer is A because it is.", "A"),
    ("Answer: A gold ring", "A"),
    ("Answer: I", "I"),
    ("Answer: I because it is.", "I"),
    ("**Answer: I. iron**", "I"),
    ("Answer: I think it is C", None),
    ("Answer: I'd say C", None),
    ("Answer: B\nThe answer is I suppose right", "B"),
    ("Answer: Option A or option B", None),
    ("Answer: \"A\" / \"B\"", None),
    ("Answer: Options", None),
    ("Answer: \\textbf{Any}", None),
    ("Answer: Any of them", None),
    ("answer: c", None),
    ("The answer is K", None),
    ("I do not know", None),
    ("", None),
])
def test_letters(reply, letter):
    assert letters.chosen(reply) == letter


def test_options_of_gpqa_stay_where_they_are():
    """The same order in every run, and not the same for every question."""
    orders = [tuple(letters.gpqa_order({"Question": f"q{i}"})) for i in range(40)]
    assert orders == [tuple(letters.gpqa_order({"Question": f"q{i}"})) for i in range(40)]
    assert {order.index("Correct Answer") for order in orders} == {0, 1, 2, 3}


@pytest.mark.parametrize("reply, right", [
    ("Answer: 1,234", 1), ("Answer: $1234.00", 1), ("it is 1234", 1), ("Answer: 12345", 0),
    ("Answer: -1234", 0), ("1234 it is.\nAnswer: none", 1), ("1234 or 5", 0), ("", 0),
    ("Answer: 1{,}234", 1), ("Answer: 1234 (since 1244-10)", 1), ("Answer: \\(1234\\)", 1),
    ("Answer: \\(1234\\) (of 5)", 1), ("Answer: (1234)", 1), ("Answer: **1,234** (so 7 left)", 1),
    ("Answer: \u22121234", 0), ("Answer: 5 (since 1234)", 0), ("Answer: f(2) = 1234", 1),
])
def test_gsm8k(reply, right):
    assert arithmetic.score_gsm8k({"answer": "x\n#### 1,234"}, reply).right == right


@pytest.mark.parametrize("reply", ["Answer: \u22125", "Answer: -5", "-5"])
def test_gsm8k_below_zero(reply):
    assert arithmetic.score_gsm8k({"answer": "#### -5"}, reply).right == 1
    assert arithmetic.score_gsm8k({"answer": "#### 5"}, reply).right == 0


@pytest.mark.parametrize("reply, right", [
    ("\\boxed{70}", 1), ("\\boxed{070}", 1), ("\\boxed{7} then \\boxed{70}", 1), ("70", 1),
    ("\\boxed{71}", 0), ("$\\boxed{70", 0), ("", 0), ("\\boxed 70", 1), ("$\\boxed 70$", 1),
    ("$70$", 1), ("So the answer is $70$.", 1), ("\\fbox{70}", 0), ("\\fbox{$70$}", 1),
    ("\\boxed", 0), ("\\boxed{}", 0), ("\\boxed{\\frac}", 0), ("\\boxed{\\sqrt}", 0),
])
def test_aime(reply, right):
    """As lm-eval's task scores it, but for leading zeros."""
    from lm_eval.tasks.aime.utils import process_results

    assert arithmetic.score_aime({"answer": 70}, reply).right == right
    if "070" not in reply:
        assert process_results({"answer": 70}, [reply])["exact_match"] == right


@pytest.mark.parametrize("answer, reply", [
    ("0", "\\boxed{000}"), ("082", "\\boxed{82}"), ("7", "\\boxed{07}"),
    ("336^\\circ", "\\boxed{336}"),
])
def test_spellings_of_aime(answer, reply):
    assert arithmetic.score_aime({"answer": answer}, reply).right == 1


def test_a_program_without_its_def_goes_on_behind_the_prompt():
    doc = {"prompt": "def f(x):\n", "entry_point": "f", "test": "def check(c):\n    assert c(1)\n"}
    for reply in ("```python\n    return x\n```", "```py\ndef f(x):\n    return x\n",
                  "```python\nimport os\n```\n```python\ndef f(x):\n    return x\n```",
                  "```python3\ndef f(x):\n    return x\n```\nDone.",
                  "```python title=x\ndef f(x):\n    return x\n```",
                  "```python\r\ndef f(x):\r\n    return x\r\n```\r\n",
                  "1. Here:\n   ```python\n   def f(x):\n\n       return x\n   ```\n2. Done",
                  "- ```python\n  def f(x):\n      return x\n  ```",
                  "  ```python\ndef f(x):\n    return x\n  ```",
                  "```bash\npip install x\n```\nand\n```python\ndef f(x):\n    return x\n```",
                  "Here: ```python\ndef f(x):\n    return x```",
                  "~~~python\ndef f(x):\n    return x\n~~~",
                  "```python\nfrom __future__ import annotations\ndef f(x: Q):\n    return x\n```",
                  "from __future__ import (\n    annotations,\n)\ndef f(x: Q):\n    return x"):
        scope = {}
        exec(compile(programs.program(doc, reply), "p", "exec", dont_inherit=True), scope)
        assert scope["f"](3) == 3
