"""Three questions a benchmark, with what the stub says to them and what that is worth.

Files, columns and types are the real data sets'; the rows are not.
"""

import json
from typing import NamedTuple

import pandas as pd


class Sample(NamedTuple):
    """words: of the question, to know it by.  right: points of each draw."""

    words: str
    reply: str
    right: int
    of: int = 1


def card_of(folder, configs):
    """The README with which a data set's repository says what its files are."""
    listed = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {path}\n" for split, path in splits)
        for name, splits in configs.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n# made up\n")


def gpqa_diamond(data):
    folder = data / "Idavidrein/gpqa"
    card_of(folder, {
        "gpqa_extended": [("train", "gpqa_extended.csv")],
        "gpqa_diamond": [("train", "gpqa_diamond.csv")],
    })
    rows = [
        {"Record ID": f"rec{i}", "Question": f"Question number {i}?", "Correct Answer": "gold\n",
         "Incorrect Answer 1": "tin", "Incorrect Answer 2": "lead", "Incorrect Answer 3": "iron",
         "Explanation": "because", "Subdomain": "Chemistry (general)"}
        for i in range(3)
    ]
    pd.DataFrame(rows).to_csv(folder / "gpqa_diamond.csv", index=False)
    pd.DataFrame(rows[:1]).to_csv(folder / "gpqa_extended.csv", index=False)

    def letter(row, column):
        from diffusiongemma_vllm.evaluation.letters import gpqa_order

        return "ABCD"[gpqa_order(row).index(column)]

    return [
        Sample("number 0", f"So it is.\n\n**Answer: {letter(rows[0], 'Correct Answer')}**", 1),
        Sample("number 1", f"Answer: {letter(rows[1], 'Incorrect Answer 2')}", 0),
        Sample("number 2", f"\\boxed{{\\text{{{letter(rows[2], 'Correct Answer')}}}}}", 1),
    ]


def aime25(data):
    folder = data / "math-ai/aime25"
    folder.mkdir(parents=True)
    rows = [("Find the least $x$.", "70"), ("Find the least $y$.", "588"),
            ("Find the least $z$.", "16")]
    (folder / "test.jsonl").write_text("".join(
        json.dumps({"problem": problem, "answer": answer, "id": str(i)}) + "\n"
        for i, (problem, answer) in enumerate(rows)
    ))
    return [
        Sample("$x$", "We get $\\boxed{070}$.", 1),
        Sample("$y$", "Not $588$ but $\\boxed{589}$.", 0),
        Sample("$z$", "", 0),  # cut off while it thought
    ]


def gsm8k(data):
    folder = data / "openai/gsm8k"
    card_of(folder, {"main": [("train", "main/train-*"), ("test", "main/test-*")]})
    (folder / "main").mkdir()
    frame = pd.DataFrame({
        "question": ["How many ants?", "How many bees?", "How many cats?"],
        "answer": ["2 * 9 = <<2*9=18>>18\n#### 18", "So 1,200.\n#### 1,200", "Few.\n#### 3"],
    })
    for split in ("train", "test"):
        frame.to_parquet(folder / f"main/{split}-00000-of-00001.parquet")
    return [
        Sample("ants", "2 times 9.\n\n**Answer:** 18", 1),
        Sample("bees", "In 3 days.\n\nAnswer: $1200.00", 1),
        Sample("cats", "Answer: 3 or rather 4", 0),
    ]


def ifeval(data):
    folder = data / "google/IFEval"
    folder.mkdir(parents=True)
    keys = ("num_highlights", "relation", "num_words", "keywords", "num_sentences", "num_bullets",
            "forbidden_words", "language", "prompt_to_repeat")

    def kwargs(**given):
        return {key: given.get(key) for key in keys}

    rows = [
        {"key": 1000, "prompt": "Write a poem without commas about ships.",
         "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
         "kwargs": [kwargs(), kwargs(keywords=["sail", "wind"])]},
        {"key": 1001, "prompt": "Write at least three sentences in lower case.",
         "instruction_id_list": ["change_case:english_lowercase",
                                 "length_constraints:number_sentences"],
         "kwargs": [kwargs(), kwargs(relation="at least", num_sentences=3)]},
        {"key": 1002, "prompt": "Answer as JSON.",
         "instruction_id_list": ["detectable_format:json_format"], "kwargs": [kwargs()]},
    ]
    (folder / "ifeval_input_data.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    punkt = data / "nltk_data/tokenizers/punkt_tab/english"
    punkt.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).write_text("")
    return [
        Sample("poem", "The wind is in the sail and all is well", 2, 2),
        Sample("lower case", "this is one sentence. this is the second of them.", 1, 2),
        Sample("JSON", "no braces", 0, 1),
    ]


def humaneval(data):
    folder = data / "openai/openai_humaneval"
    card_of(folder, {"openai_humaneval": [("test", "openai_humaneval/test-*")]})
    (folder / "openai_humaneval").mkdir()
    heads = [
        'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """ Sum of xs """\n',
        'def twice(x):\n    """ Two times x """\n',
        'def half(x):\n    """ Half of x """\n',
    ]
    checks = [("total", "[1, 2], 3"), ("twice", "4, 8"), ("half", "8, 4")]
    pd.DataFrame({
        "task_id": [f"HumanEval/{i}" for i in range(3)],
        "prompt": heads,
        "canonical_solution": ["    return sum(xs)\n", "    return 2 * x\n", "    return x / 2\n"],
        "test": [
            "\n\nMETADATA = {}\n\n\ndef check(candidate):\n"
            f"    assert candidate({', '.join(case.split(', ')[:-1])}) == {case.split(', ')[-1]}\n"
            for _, case in checks
        ],
        "entry_point": [name for name, _ in checks],
    }).to_parquet(folder / "openai_humaneval/test-00000-of-00001.parquet")
    return [
        Sample("total", "Here:\n```python\ndef total(xs: List[int]) -> int:\n    n = 0\n"
               "    for x in xs:\n        n += x\n    return n\n```\nDone.", 1),
        Sample("twice", "```python\ndef twice(x):\n    return x + 2\n```", 0),
        Sample("half", "```python\nimport os\nos._exit(0)\n```", 0),  # no way past the tests
    ]


def mmmlu(data):
    folder = data / "openai/MMMLU"
    card_of(folder, {
        "default": [("test", "test/*.csv")], "DE_DE": [("test", "test/mmlu_DE-DE.csv")],
    })
    (folder / "test").mkdir()
    files = {
        "DE-DE": [("Wie viele Beine hat ein Hund?", "C"), ("Wie viele Beine hat ein Huhn?", "A")],
        "JA-JP": [("犬の足は何本ですか", "C")],
    }
    for language, rows in files.items():
        pd.DataFrame([
            {"Question": question, "A": "2", "B": "3", "C": "4", "D": 5, "Answer": answer,
             "Subject": "anatomy"} for question, answer in rows
        ]).to_csv(folder / f"test/mmlu_{language}.csv")  # with a column of row numbers
    return [
        Sample("Hund", "Vier.\n\nAnswer: C", 1),
        Sample("Huhn", "Answer: B. 3", 0),
        Sample("犬", "答えは四本です。\nAnswer：C", 1),
    ]


def mmlu_pro(data):
    folder = data / "TIGER-Lab/MMLU-Pro"
    card_of(folder, {"default": [("test", "data/test-*"), ("validation", "data/validation-*")]})
    (folder / "data").mkdir()
    frame = pd.DataFrame({
        "question_id": [70, 71, 72],
        "question": ["Which is first?", "Which is last?", "Which is third?"],
        "options": [[f"option {i}" for i in range(10)]] * 2 + [["x", "y", "z"]],
        "answer": ["A", "J", "C"], "answer_index": [0, 9, 2], "cot_content": ["", "", ""],
        "category": ["law"] * 3, "src": ["made-up"] * 3,
    })
    for split in ("test", "validation"):
        frame.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return [
        Sample("first", "I think the answer is (A).", 1),
        Sample("last", "At first I took Answer: I for it. Answer: J", 1),
        Sample("third", "Answer: A", 0),
    ]


MAKERS = (gpqa_diamond, aime25, gsm8k, ifeval, humaneval, mmmlu, mmlu_pro)
