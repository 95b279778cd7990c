"""Drafts as the stock OpenAI client reads them."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

COUNT = "Count from 001 to 170."
TURN = (
    "<bos><|turn>user\nWhat is {}?<turn|>\n<|turn>model\n<|channel>thought\n<channel|>"
)
DRAFTS = {"vllm_xargs": {"diffusion_drafts": 1}}


def split(chunks):
    """What came, in order: drafts with their choice, text, and the report."""
    text, events = "", []
    for chunk in chunks:
        for choice in chunk.choices:
            extra = choice.model_extra or {}
            if "diffusion_draft" in extra:
                assert choice.delta.content == "" and choice.finish_reason is None
                events.append((choice.index, extra["diffusion_draft"]))
            elif choice.delta.content:
                text += choice.delta.content
                events.append((choice.index, choice.delta.content))
    return text, events


def test_drafts_come_first_and_the_text_is_the_same(chat):
    plain = chat(COUNT).choices[0]
    report = plain.model_extra["diffusion"]["canvases"]
    chunks = list(chat(COUNT, stream=True, extra=DRAFTS))
    text, events = split(chunks)
    assert text == plain.message.content
    drafts = [event for _, event in events if isinstance(event, dict)]
    assert [(d["canvas"], d["step"]) for d in drafts] == [
        (c, s + 1) for c, canvas in enumerate(report) for s in range(canvas["steps"])
    ]
    first = next(i for i, (_, event) in enumerate(events) if isinstance(event, str))
    # All of the first canvas's before its text, which a slow client gets with the next one's.
    assert first >= report[0]["steps"]
    assert [d["done"] for d in drafts].count(True) == 3
    assert len({(c.id, c.model) for c in chunks}) == 1
    whole = "".join("".join(d["tokens"][: d["length"]]) for d in drafts if d["done"])
    assert whole.endswith(text)  # behind the empty thought


def test_a_draft_spells_its_tokens(chat):
    _, events = split(chat("What is 27 + 38?", stream=True, extra=DRAFTS))
    draft = events[0][1]
    for name in ("tokens", "guess", "settled", "entropy"):
        assert len(draft[name]) == 256
    assert draft["text"] == "".join(draft["guess"][: draft["length"]])
    last = next(event for _, event in reversed(events) if isinstance(event, dict))
    assert last["text"].endswith("65") and last["guess"][last["length"]] == "<turn|>"


def test_the_clients_accumulator(client, model):
    """`stream` adds up every field of every delta."""
    ask = [{"role": "user", "content": "Reverse these words: boat lamp salt"}]
    options = dict(
        model=model, messages=ask, seed=1, n=2, temperature=1,
        extra_body=DRAFTS | {"chat_template_kwargs": {"enable_thinking": False}},
    )
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        found = stream.get_final_completion()
    plain = client.chat.completions.create(
        **options | {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    )
    assert [c.message.content for c in found.choices] == [
        c.message.content for c in plain.choices
    ]
    assert {c.message.role for c in found.choices} == {"assistant"}


def test_an_anthropic_stream_opens_with_the_prompts_length(server, model):
    """With drafts, which message_start comes before, as without."""
    body = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": COUNT}],
            "stream": True}

    def events(**more):
        lines = httpx.post(f"{server.url}/v1/messages", json=body | more, timeout=300).text
        return [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: ")]

    plain, drafted = events(), events(**DRAFTS)
    assert plain[0]["message"]["usage"]["input_tokens"] > 0
    assert drafted[0]["message"]["usage"] == plain[0]["message"]["usage"]
    assert [event["type"] for event in drafted] == [event["type"] for event in plain]


def test_completions(client, model):
    """Two prompts and two choices of each."""
    options = dict(model=model, prompt=[TURN.format("27 + 38"), TURN.format("11 + 22")], n=2,
                   seed=1, max_tokens=20)
    texts, heard, steps = [""] * 4, [0] * 4, [0] * 4
    for chunk in client.completions.create(**options, stream=True, extra_body=DRAFTS):
        for choice in chunk.choices:
            extra = choice.model_extra or {}
            texts[choice.index] += choice.text
            heard[choice.index] += "diffusion_draft" in extra
            if "diffusion" in extra:
                steps[choice.index] = extra["diffusion"]["canvases"][0]["steps"]
    plain = client.completions.create(**options).choices
    assert texts == [choice.text for choice in plain] == ["65", "65", "33", "33"]
    assert heard == steps and min(steps) > 0


def test_a_call_comes_whole(chat):
    """The parser reads what it reads without drafts."""
    tool = {"type": "function", "function": {
        "name": "get_weather", "description": "Current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                       "required": ["city"]},
    }}
    ask = "What is the weather in paris?"
    call = chat(ask, tools=[tool]).choices[0].message.tool_calls[0].function
    name = arguments = ""
    for chunk in chat(ask, tools=[tool], stream=True, extra=DRAFTS):
        for part in chunk.choices[0].delta.tool_calls or ():
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments) == (call.name, call.arguments)


def test_where_no_stream_is(client, model, chat, healthy):
    with pytest.raises(openai.BadRequestError, match="diffusion_drafts has no stream"):
        chat("Hello", extra=DRAFTS)
    with pytest.raises(openai.BadRequestError, match="diffusion_drafts has no stream"):
        client.completions.create(model=model, prompt="ab", extra_body=DRAFTS)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="diffusion_drafts has no stream"):
            client.responses.create(model=model, input="Hello", stream=stream, extra_body=DRAFTS)
    healthy()


@pytest.mark.parametrize("wrong", [0, -1, 1025, 1.5, "each"])
def test_a_wrong_number_of_steps(chat, wrong):
    with pytest.raises(openai.BadRequestError, match="diffusion_drafts must be a whole number"):
        chat("Hello", stream=True, extra={"vllm_xargs": {"diffusion_drafts": wrong}})


def test_a_client_that_leaves(chat, at_rest, healthy):
    stream = chat(COUNT, stream=True, extra=DRAFTS)
    next(iter(stream))
    stream.close()
    at_rest()
    healthy()


def test_the_terminal_chat(server, user_environment):
    """Two questions on its input; an empty line ends it."""
    done = subprocess.run(
        [Path(sys.executable).with_name("diffusiongemma-vllm"), "chat", "--url", server.url,
         "--temperature", "0"],
        input="What is 27 + 38?\nReverse these words: boat lamp salt\n\n", capture_output=True,
        text=True, timeout=300, env=user_environment,
    )
    assert done.returncode == 0, done.stderr
    assert "65" in done.stdout and "salt lamp boat" in done.stdout
    assert done.stdout.count("1 canvas(es)") == 2 and "tokens a forward" in done.stdout
