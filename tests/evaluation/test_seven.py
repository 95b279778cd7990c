"""Each of the seven, from files in the real format to points, through lm-eval and HTTP."""

import json
from dataclasses import replace

import pytest
from made_up import MAKERS

from diffusiongemma_vllm.cli.main import main
from diffusiongemma_vllm.evaluation.seven import BY_NAME


@pytest.fixture
def evaluate(stub, data, tmp_path):
    """Runs the command; its exit code."""

    def run(*arguments):
        return main(["eval", "--url", stub.url, "--data", str(data), "--out",
                     str(tmp_path / "out"), *arguments])

    return run


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_right_and_wrong_answers(make, evaluate, stub, data, tmp_path, capsys):
    """Points of every question, and the request that the card's settings make."""
    samples = make(data)
    stub.replies = [(one.words, one.reply) for one in samples]
    name = make.__name__
    sandbox = ["--sandbox", "bwrap"] if name == "humaneval" else []
    assert evaluate(name, *sandbox) == 0
    draws = BY_NAME[name].draws
    found = json.loads((tmp_path / f"out/{name}.json").read_text())
    assert found["right"] == [one.right * draws for one in samples]
    assert found["of"] == [one.of * draws for one in samples]
    assert found["cut"] == draws * sum(not one.reply for one in samples)
    assert len(stub.asked) == 3 * draws
    assert len({body["seed"] for body in stub.asked}) == 3 * draws
    for body in stub.asked:
        assert body["chat_template_kwargs"] == {"enable_thinking": True}
        assert set(body) == {"model", "messages", "seed", "chat_template_kwargs"}
        assert [turn["role"] for turn in body["messages"]] == ["user"]
    row = next(
        line for line in (tmp_path / "out/table.md").read_text().splitlines()
        if line.startswith(f"| {BY_NAME[name].title} ")
    )
    right, of = (sum(found[key]) for key in ("right", "of"))
    card = BY_NAME[name].card
    assert f"| {100 * right / of:.1f} (" in row
    assert f"| {100 * right / of - card.bf16:+.1f} (" in row
    assert f"| {100 * right / of - card.nvfp4:+.1f} (" in row


def test_an_interrupted_run_goes_on(evaluate, stub, data, capsys):
    """What was answered is not asked again; the same questions get the same seeds."""
    samples = next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    stub.replies = [(one.words, one.reply) for one in samples]
    stub.broken_after = 2
    assert evaluate("gsm8k", "--concurrency", "1") == 1
    assert "the same command goes on" in capsys.readouterr().err
    stub.broken_after = None
    assert evaluate("gsm8k", "--concurrency", "1") == 0
    assert evaluate("gsm8k", "--concurrency", "1") == 0
    asked = [body["messages"][0]["content"] for body in stub.asked]
    assert len(asked) == 4 and asked[2] == asked[3] and len(set(asked)) == 3
    assert stub.asked[2]["seed"] == stub.asked[3]["seed"]


def test_a_limit_spreads_and_another_run_stands_beside(
    evaluate, stub, data, tmp_path, capsys
):
    samples = next(make for make in MAKERS if make.__name__ == "mmmlu")(data)
    stub.replies = [(one.words, one.reply) for one in samples]
    assert evaluate("mmmlu", "--limit", "2", "--max-tokens", "100") == 0
    assert json.loads((tmp_path / "out/mmmlu.json").read_text())["questions"] == [0, 1]
    assert all(body["max_tokens"] == 100 for body in stub.asked)
    other = tmp_path / "other"
    (tmp_path / "out").rename(other)
    stub.replies = [("H", "Answer: A"), *stub.replies]
    before = len(stub.asked)
    for arguments in ((), ("--limit", "1")):
        assert evaluate("mmmlu", "--beside", str(other), *arguments) == 1
        assert "the other run asked 2 question(s)" in capsys.readouterr().err
        assert len(stub.asked) == before
    assert evaluate("mmmlu", "--limit", "2", "--beside", str(other)) == 0
    assert "| +0.0 (" in (tmp_path / "out/table.md").read_text().splitlines()[2]


@pytest.mark.parametrize("name", ["gsm8k", "ifeval"])
def test_a_reply_that_breaks_the_scorer_is_wrong(
    name, evaluate, stub, data, tmp_path, monkeypatch, caplog
):
    samples = next(make for make in MAKERS if make.__name__ == name)(data)
    stub.replies = [(one.words, one.reply) for one in samples]
    real = BY_NAME[name].score

    def strange(doc, reply):
        if real(doc, reply).right < max(one.right for one in samples):
            raise AssertionError("what is this")
        return real(doc, reply)

    monkeypatch.setitem(BY_NAME, name, replace(BY_NAME[name], score=strange))
    assert evaluate(name) == 0
    found = json.loads((tmp_path / f"out/{name}.json").read_text())
    most = max(one.right for one in samples)
    assert found["right"] == [one.right if one.right == most else 0 for one in samples]
    assert found["of"] == [one.of for one in samples]
    assert caplog.text.count("counts as wrong") == 1 and "what is this" in caplog.text


def test_an_answer_broken_off_is_not_kept(evaluate, stub, data, tmp_path, capsys):
    samples = next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    said = {"role": "assistant", "content": "4"}
    choice = {"index": 0, "finish_reason": "abort", "message": said}
    stub.replies = [(one.words, {"choices": [choice]}) for one in samples]
    assert evaluate("gsm8k") == 1
    assert "broke the answer off" in capsys.readouterr().err
    assert not (tmp_path / "out/gsm8k.answers.jsonl").read_text()


def test_a_scorer_that_cannot_run_is_no_wrong_answer(evaluate, stub, data, monkeypatch, capsys):
    def broken(doc, reply):
        raise OSError("no space left")

    samples = next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    stub.replies = [(one.words, one.reply) for one in samples]
    monkeypatch.setitem(BY_NAME, "gsm8k", replace(BY_NAME["gsm8k"], score=broken))
    assert evaluate("gsm8k") == 1
    assert "cannot be scored here (no space left)" in capsys.readouterr().err


def test_a_reply_without_choices(evaluate, stub, data, capsys):
    samples = next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    stub.replies = [(one.words, {"choices": []}) for one in samples]
    assert evaluate("gsm8k") == 1
    assert "the reply holds no message" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, said", [
    (("humaneval",), "--sandbox bwrap"),
    ((), "humaneval runs code"),
    (("gsm8k",), "hf download --repo-type dataset openai/gsm8k"),
    (("gpqa_diamond",), "accept terms"),
    (("ifeval",), "punkt_tab"),
    (("mmlu",), "no benchmark mmlu"),
    (("miniature", "gsm8k"), "which runs alone"),
    (("gsm8k", "--limit", "0"), "--limit must be 1 or more"),
    (("gsm8k", "--beside", "nowhere"), "no finished run of gsm8k"),
], ids=lambda value: value if isinstance(value, str) else " ".join(value) or "all")
def test_refused(arguments, said, evaluate, stub, capsys):
    assert evaluate(*arguments) == 1
    assert said in capsys.readouterr().err
    assert not stub.asked


def test_a_server_that_is_not_there(data, tmp_path, capsys):
    next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    assert main(["eval", "gsm8k", "--url", "http://127.0.0.1:9", "--data", str(data),
                 "--out", str(tmp_path)]) == 1
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("page, said", [
    ((200, "<html>hi</html>"), "is no vLLM server"),
    ((200, {"hi": 1}), "is no vLLM server"),
    ((200, {"data": [{}]}), "is no vLLM server"),
    ((200, {"data": []}), "serves no model"),
    ((404, "<html>gone</html>"), "lists no models (HTTP 404)"),
], ids=str)
@pytest.mark.parametrize("command", ["eval", "chat"])
def test_what_is_no_vllm_server(command, page, said, evaluate, stub, data, capsys):
    next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    stub.page = page
    assert (evaluate("gsm8k") if command == "eval" else main(["chat", "--url", stub.url])) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_what_eval_cannot_use(evaluate, stub, data, tmp_path, capsys):
    """One sentence each."""
    next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    file = tmp_path / "file"
    file.write_text("{}")
    out = tmp_path / "broken"
    out.mkdir()
    (out / "gsm8k.answers.jsonl").write_text("{}\n")
    (out / "gsm8k.json").write_text("{}\n")
    for arguments, said in (
        (("--out", str(file)), "is no folder to write to"),
        (("--out", str(out)), "gsm8k.answers.jsonl, line 1, is no answer"),
        (("--beside", str(out)), "gsm8k.json is no result"),
        (("--url", "http://127.0.0.1:abc"), "is no address of a server"),
        (("--api-key", "k\xe9"), "beyond plain ASCII"),
    ):
        assert evaluate("gsm8k", *arguments) == 1
        assert said in capsys.readouterr().err.splitlines()[-1], arguments
    assert not stub.asked


def test_a_key(evaluate, stub, data, monkeypatch, capsys):
    samples = next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    stub.replies = [(one.words, one.reply) for one in samples]
    stub.key = "sk-1"
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert evaluate("gsm8k") == 1
    said = capsys.readouterr().err
    assert "refuses the API key (HTTP 401)" in said and "no server answers" not in said
    assert evaluate("gsm8k", "--api-key", "sk-1") == 0
    monkeypatch.setenv("VLLM_API_KEY", "sk-1")
    assert evaluate("gsm8k", "--max-tokens", "9") == 0
    assert len(stub.asked) == 6


def test_a_model_that_is_not_served(evaluate, data, capsys):
    next(make for make in MAKERS if make.__name__ == "gsm8k")(data)
    assert evaluate("gsm8k", "--model", "poet") == 1
    assert "poet is not served" in capsys.readouterr().err
