"""Which tools a request's `tool_choice` forces, and what is refused at admission."""

import json
from typing import Any

import pytest

pytest.importorskip("vllm")

from runs import TOKENIZER, Pair, Run, request  # noqa: E402
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402

from diffusiongemma_vllm.parsers.parser import TurnParser  # noqa: E402

CODE = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
FUNCTION = {"type": "function", "name": "f", "parameters": CODE}
NAMESPACE = {
    "type": "namespace", "name": "ns", "description": "d", "tools": [
        {"type": "function", "name": "zip", "parameters": CODE}, {"type": "custom", "name": "raw"}
    ],
}  # fmt: skip
CUSTOM = {"type": "custom", "name": "patch", "description": "d"}
SEARCH = {"type": "web_search"}
TOOLS = [FUNCTION, NAMESPACE, CUSTOM, SEARCH]
BOTH = pytest.mark.parametrize("composed", [TurnParser, Pair], ids=["server", "pair"])


def responses(choice: Any, tools: Any = None) -> ResponsesRequest:
    return ResponsesRequest(
        model="m", input="Hi", tools=TOOLS if tools is None else tools, tool_choice=choice
    )


def forced(asked: Any, composed: type = TurnParser) -> list[str]:
    """The calls that the grammar of an adjusted request knows."""
    asked = composed(TOKENIZER, asked.tools).adjust_request(asked)
    if asked.structured_outputs is None:
        return []
    grammar = json.loads(asked.structured_outputs.structural_tag)["format"]["grammar"]
    return [part.split('"')[0] for part in grammar.split('"call:')[1:]]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "name": name} for name in names]
    return {"type": "allowed_tools", "mode": mode, "tools": [*tools, {"type": "web_search"}]}


@BOTH
@pytest.mark.parametrize(("choice", "wanted"), [
    ("auto", []),
    ("required", ["f", "ns__zip", "patch"]),
    ({"type": "function", "name": "f"}, ["f"]),
    ({"type": "function", "name": "zip"}, ["ns__zip"]),
    ({"type": "function", "name": "ns__zip"}, ["ns__zip"]),
    ({"type": "custom", "name": "patch"}, ["patch"]),
    (allowed("required", "f", "patch"), ["f", "patch"]),
    (allowed("auto", "f", "ns__zip", "patch"), []),
], ids=str)  # fmt: skip
def test_what_the_prompt_shows_can_be_forced(composed, choice, wanted):
    assert forced(responses(choice), composed) == wanted


@BOTH
def test_every_kind_of_tool_has_its_types(composed):
    text = "".join(
        f"<|tool_call>call:{name}{{{key}:12}}<tool_call|>"
        for name, key in (("f", "code"), ("ns__zip", "code"), ("patch", "input"))
    )
    asked = responses("required")
    Run(composed, text, asked, thinking=False).check("", "", [
        ("f", '{"code": "12"}'), ("ns__zip", '{"code": "12"}'), ("patch", '{"input": "12"}')
    ])  # fmt: skip


@pytest.mark.parametrize(("choice", "tools", "said"), [
    ("required", [SEARCH], "leaves nothing"),
    ({"type": "web_search_preview"}, None, "leaves nothing"),
    ({"type": "custom", "name": "raw"}, None, "names 'ns__raw'"),
    ({"type": "mcp", "server_label": "s", "name": "f2"}, None, "names 'f2'"),
    (allowed("required", "g"), None, "names 'g'"),
    (allowed("required"), None, "leaves nothing"),
    (allowed("auto", "f"), None, "mode 'required'"),
    ("required", [{**FUNCTION, "name": "two words"}], "'two words'"),
], ids=str)  # fmt: skip
def test_refused(choice, tools, said):
    with pytest.raises(VLLMValidationError, match=said) as refused:
        forced(responses(choice, tools))
    assert refused.value.parameter == "tool_choice"


def test_a_schema_that_cannot_be_kept_is_refused():
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": "5"}}}
    asked = responses("required", [{**FUNCTION, "parameters": schema}])
    with pytest.raises(VLLMValidationError, match="tool 'f': maxLength .* got '5'") as refused:
        forced(asked)
    assert refused.value.parameter == "tools"


def test_chat_completions_are_forced_alike():
    assert forced(request(tool_choice="required")) == ["f", "g"]
    named = {"type": "function", "function": {"name": "g"}}
    assert forced(request(tool_choice=named)) == ["g"]
