"""The checkpoint's chat template through an agent's loop, and our parsers on what it renders."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from turns import Tokenizer, whole

from diffusiongemma_vllm.parsers.grammar import Start
from diffusiongemma_vllm.parsers.prompt import MarkerIds

templates = pytest.importorskip("transformers.utils.chat_template_utils")
chat_utils = pytest.importorskip("vllm.renderers.chat_utils")

TEMPLATE = Path(__file__).resolve().parents[3] / "shared" / "model" / "chat_template.jinja"
pytestmark = pytest.mark.skipif(not TEMPLATE.exists(), reason=f"no {TEMPLATE}")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]
ARGUMENTS = [
    {"city": "Oslo", "days": 3},
    {"city": 'a "b" {c}, <d>\n', "days": -1, "deep": {"x": [1.5, True, [], {}], "y": "z"}},
]
USER = {"role": "user", "content": "How is the weather?"}
TEXT_ONLY = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False)


def calls(*arguments: Any, **more: Any) -> dict[str, Any]:
    """The assistant's message as an OpenAI client sends it back."""
    listed = [
        {
            "id": f"call_{i}",
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps(a)},
        }
        for i, a in enumerate(arguments)
    ]
    return {"role": "assistant", "content": None, "tool_calls": listed, **more}


def result(index: int, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{index}", "content": content}


def render(messages: list[Any], thinking: bool = False, parse: bool = True) -> str:
    """As vLLM does it: its chat utilities, then the template."""
    if parse:
        messages, _, _ = chat_utils.parse_chat_messages(messages, TEXT_ONLY, "openai")
    rendered, _ = templates.render_jinja_template(
        conversations=[messages],
        tools=TOOLS,
        chat_template=TEMPLATE.read_text(),
        add_generation_prompt=True,
        enable_thinking=thinking,
        bos_token="<bos>",
    )
    return rendered[0]


def model_turn(prompt: str) -> str:
    """What the prompt shows as the model's own words."""
    return prompt.rsplit("<|turn>model\n", 1)[1]


def start(prompt: str, thinking: bool) -> Start:
    tokenizer = Tokenizer()
    return MarkerIds(tokenizer).start(tokenizer.encode(prompt), thinking)


def test_a_new_turn():
    off, on = render([USER]), render([USER], thinking=True)
    assert off.endswith("<|turn>model\n<|channel>thought\n<channel|>")
    assert on.endswith("<|turn>model\n") and "<|think|>" in on
    assert start(off, False) is Start.TEXT
    assert start(on, True) is Start.MAYBE_LABEL


def test_calls_are_rendered_as_our_parser_reads_them():
    """The round trip that keeps a conversation true: parsed, sent back, rendered, parsed."""
    prompt = render([USER, calls(*ARGUMENTS)])
    turn = whole(model_turn(prompt))
    assert [json.loads(a) for _, a in turn.calls] == ARGUMENTS
    assert all(turn.complete) and not turn.content and not turn.reasoning


def test_several_results_follow_their_calls_in_one_turn():
    messages = [USER, calls(*ARGUMENTS), result(0, "4 C"), result(1, '{"t": 5}')]
    prompt = render(messages)
    assert prompt.count("<|turn>model\n") == 1
    said = model_turn(prompt)
    assert said.count("<|tool_call>") == 2
    responses = said.split("<|tool_response>")[1:]
    assert len(responses) == 2 and all(r.startswith("response:weather{") for r in responses)
    assert "4 C" in responses[0] and '{"t": 5}' in responses[1]
    assert said.endswith("<tool_response|>")  # the model goes on right here


@pytest.mark.parametrize("thinking", [False, True])
def test_the_turn_goes_on_after_a_result(thinking):
    prompt = render([USER, calls({"city": "Oslo"}), result(0, "4 C")], thinking)
    assert start(prompt, thinking) is (Start.MAYBE_LABEL if thinking else Start.TEXT)


def test_results_in_parts_and_with_images():
    parts = [{"type": "text", "text": "4"}, {"type": "text", "text": " C"}]
    assert "4\n C" in model_turn(render([USER, calls({}), result(0, parts)]))  # vLLM joins lines
    picture = [{"type": "text", "text": "see"}, {"type": "image"}]  # as vLLM passes an image on
    prompt = render([USER, calls({}), result(0, picture)], parse=False)
    assert model_turn(prompt).endswith("<tool_response|><|image|>")


def test_thoughts_of_earlier_turns_are_left_out():
    thought = "<|channel>thought\nsecret\n<channel|>"
    history = [
        USER,
        calls({"city": "Oslo"}, reasoning="secret"),
        result(0, "4 C"),
        {"role": "assistant", "content": f"{thought}It is cold.", "reasoning": "secret"},
        {"role": "user", "content": "And tomorrow?"},
    ]
    prompt = render(history, thinking=True)
    assert "secret" not in prompt and "It is cold." in prompt
    assert start(prompt, True) is Start.MAYBE_LABEL


def test_the_thought_behind_a_pending_call_stays():
    """Rendered as it was generated: parsing takes off exactly what the template puts on."""
    turn = "<|channel>thought\nFirst Oslo.\n<channel|>"
    generated = turn + '<|tool_call>call:weather{city:<|"|>Oslo<|"|>}<tool_call|>'
    read = whole(generated)
    answer = calls(json.loads(read.calls[0][1]), reasoning=read.reasoning)
    prompt = render([USER, answer, result(0, "4 C")], thinking=True)
    assert model_turn(prompt).startswith(generated + "<|tool_response>")


def test_a_loop_of_three_steps():
    messages: list[Any] = [USER]
    for step in range(3):
        messages += [calls({"city": f"c{step}"}), result(0, f"r{step}")]
    messages.append({"role": "assistant", "content": "Done."})
    messages.append({"role": "user", "content": "Thanks"})
    prompt = render(messages)
    assert prompt.count("<|turn>model\n") == 2  # one turn for the loop, one to come
    order = [prompt.index(x) for step in range(3) for x in (f"c{step}", f"r{step}")]
    assert order == sorted(order) < [prompt.index("Done.")]


def test_vllm_hands_the_template_parts_of_messages():
    """Pictures in tool results depend on it."""
    from vllm.renderers.hf import _detect_content_format as detect

    assert detect(TEMPLATE.read_text(), default="string") == "openai"
