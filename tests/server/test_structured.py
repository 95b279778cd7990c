"""Structured outputs and forced calls, through the stock OpenAI client."""

import json
import re

import jsonschema
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.engine

SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "color", "age"],
    "properties": {"name": {"type": "string", "maxLength": 20}, "color": {"enum": ["grey", "red"]},
                   "age": {"type": "integer", "minimum": 0, "maximum": 150}},
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
PROMPT = "Write a JSON object: name is nina, color is grey, age is 55."


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "A tool",
                                             "parameters": parameters}}


TOOLS = [
    tool("set_timer", label={"type": "string"}, minutes={"type": "integer"}),
    tool("get_weather", city={"type": "string"}),
]


def called(choice):
    assert choice.finish_reason == "tool_calls" and not choice.message.content
    for call in choice.message.tool_calls:
        schema = next(t["function"]["parameters"] for t in TOOLS
                      if t["function"]["name"] == call.function.name)
        jsonschema.validate(json.loads(call.function.arguments), schema)
    return [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls]


def test_a_schema(chat, healthy):
    said = chat(PROMPT, response_format=FORMAT).choices[0].message.content
    assert json.loads(said) == {"name": "nina", "color": "grey", "age": 55}
    said = chat("Write a JSON object: name is nina, color is blue, age is 55.",
                response_format=FORMAT).choices[0].message.content
    jsonschema.validate(json.loads(said), SCHEMA)
    healthy()


def test_streamed(chat):
    chunks = chat(PROMPT, response_format=FORMAT, stream=True)
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert json.loads(said) == {"name": "nina", "color": "grey", "age": 55}


def test_behind_a_thought(chat):
    message = chat("What is 27 + 38?", thinking=True, temperature=0,
                   extra={"structured_outputs": {"regex": "[0-9]{2,3}"}}).choices[0].message
    assert re.fullmatch("[0-9]{2,3}", message.content)
    assert message.model_extra.get("reasoning")


def test_a_choice_and_a_json_object(chat):
    said = chat("What is 27 + 38?", extra={"structured_outputs": {"choice": ["yes", "no"]}})
    assert said.choices[0].message.content in ("yes", "no")
    said = chat(PROMPT, response_format={"type": "json_object"}).choices[0].message.content
    assert isinstance(json.loads(said), dict)


def test_completions(client, model):
    out = client.completions.create(
        model=model, prompt="ab", max_tokens=60, temperature=0,
        extra_body={"structured_outputs": {"regex": "[0-9]{3}"}},
    ).choices[0]
    assert re.fullmatch("[0-9]{3}", out.text) and out.finish_reason == "stop"


def test_a_required_call(chat):
    """Where the model calls by itself, and where it would rather talk."""
    choice = chat("Set a 27 minute yoga timer.", tools=TOOLS, tool_choice="required").choices[0]
    assert called(choice) == [("set_timer", {"label": "yoga", "minutes": 27})]
    choice = chat("What is 27 + 38?", tools=TOOLS, tool_choice="required", max_tokens=100,
                  parallel_tool_calls=False).choices[0]
    if choice.finish_reason != "length":  # a string of any length may go on
        assert len(called(choice)) == 1


def test_a_named_call(chat):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    out = chat("What is the weather in Cairo?", tools=TOOLS, tool_choice=choice).choices[0]
    message = out.message
    assert [c.function.name for c in message.tool_calls] == ["get_weather"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Cairo"}


def test_a_call_and_a_format_do_not_go_together(chat, healthy):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="tool_choice forces a call"):
        chat(PROMPT, tools=TOOLS, tool_choice="required", response_format=FORMAT)
    healthy()
